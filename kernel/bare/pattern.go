package bare

import "encoding/binary"

// SectorBytes is the length of one patterned sector.
const SectorBytes = 512

// The pattern's numbers; guest/blk.c has the same.
const (
	patternMagic  = 0x62617265 // "bare"
	patternSector = 0x9e3779b97f4a7c15
	patternGen    = 0xc2b2ae3d27d4eb4f
	patternStep   = 0xd6e8feb86659fd93
)

// FillSector writes the pattern of one sector in one generation to p, which has
// SectorBytes bytes. Generation 0 is zeroes.
func FillSector(p []byte, sector uint64, generation uint32) {
	p = p[:SectorBytes]
	if generation == 0 {
		clear(p)
		return
	}
	seed := (sector+1)*patternSector ^ uint64(generation)*patternGen
	binary.LittleEndian.PutUint64(p, patternMagic<<32|uint64(generation))
	binary.LittleEndian.PutUint64(p[8:], sector)
	for i := uint64(2); i < SectorBytes/8; i++ {
		binary.LittleEndian.PutUint64(p[8*i:], seed+i*patternStep)
	}
}

// SectorGeneration tells which generation of a sector p holds, and whether it
// is one: false means that it is torn, damaged or another sector's.
func SectorGeneration(p []byte, sector uint64) (generation uint32, ok bool) {
	p = p[:SectorBytes]
	generation = binary.LittleEndian.Uint32(p)
	var want [SectorBytes]byte
	FillSector(want[:], sector, generation)
	return generation, string(p) == string(want[:])
}
