package memory

//go:noescape
func store16(p *byte, v uint16)
