#include "textflag.h"

// func store16(p *byte, v uint16)
// XCHG: one atomic 16-bit store and a full barrier; sync/atomic has no 16-bit form.
TEXT ·store16(SB), NOSPLIT, $0-10
	MOVQ p+0(FP), AX
	MOVW v+8(FP), CX
	XCHGW CX, (AX)
	RET
