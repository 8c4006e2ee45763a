package inflate

// lensOrder is the order in which the lengths of the code length code come: section 3.2.7.
var lensOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// maxHeader is how many bits are read for the header of a block at most: BFINAL and BTYPE; HLIT, HDIST and HCLEN; 3 bits for each length of the
// code length code; 7 bits for each other length, which repeats cannot exceed on average; 7 extra bits of a last repeat, which may be too long.
const maxHeader = 3 + 14 + 3*19 + 7*(maxLit+maxDist) + 7

// headerAtHand reports whether the header of a block can be read without waiting for input. For a dynamic block it may be wrong to say no.
func (c *core) headerAtHand() bool {
	c.top()
	n := c.count()
	if n < 3 {
		return false
	}
	have := n + 8*(len(c.in)-c.ip)
	switch c.bits >> 1 & 3 {
	case 0:
		return have >= 3+(n-3)&7+32
	case 2:
		return have >= maxHeader
	}
	return true
}

// header reads the header of a block and makes the core ready for what it holds.
func (c *core) header() error {
	c.begin = c.bitOffset()
	if err := c.need(3); err != nil {
		return err
	}
	kind := c.bits >> 1 & 3
	if kind == 3 {
		return c.damage(partBlock, errBlockType)
	}
	final := c.bits&1 != 0
	c.drop(3)
	var err error
	switch kind {
	case 0:
		err = c.storedHeader()
	case 1:
		c.fixed()
	case 2:
		err = c.dynamicHeader()
	}
	if err != nil {
		return err
	}
	c.final = final
	return nil
}

func (c *core) storedHeader() error {
	c.drop(c.count() & 7)
	if err := c.need(32); err != nil {
		return err
	}
	size := uint16(c.bits)
	if size != ^uint16(c.bits>>16) {
		return c.damage(partStored, errStoredLen)
	}
	c.drop(32)
	c.align()
	c.block, c.stored = Stored, int(size)
	return nil
}

func (c *core) fixed() {
	c.block, c.t = Fixed, fixedTables()
}

func (c *core) dynamicHeader() error {
	if err := c.need(14); err != nil {
		return err
	}
	at := c.bitOffset()
	c.nlit, c.ndist = int(c.bits&31)+257, int(c.bits>>5&31)+1
	codes := int(c.bits>>10&15) + 4
	c.drop(14)
	if c.nlit > maxLit {
		return c.damageAt(at, partLens, errHLIT)
	}
	if c.ndist > maxDist {
		return c.damageAt(at, partLens, errHDIST)
	}
	var lens [19]uint8
	for _, i := range lensOrder[:codes] {
		if err := c.need(3); err != nil {
			return err
		}
		lens[i] = uint8(c.bits & 7)
		c.drop(3)
	}
	if err := c.work.build(c.pre[:], preBits, lens[:], preSymbols[:]); err != nil {
		return c.damageAt(at, partLens, err)
	}
	if c.pre[1<<preBits-1]&flagExcept != 0 {
		return c.damageAt(at, partLens, errIncomplete)
	}
	if err := c.readLens(); err != nil {
		return err
	}
	return c.dynamic(at)
}

// readLens reads the nlit+ndist code lengths of a dynamic block.
func (c *core) readLens() error {
	lens := c.lens[:c.nlit+c.ndist]
	for i := 0; i < len(lens); {
		c.top()
		bits, n := c.bits, c.count()
		for i < len(lens) {
			e := c.pre[bits&(1<<preBits-1)]
			size := int(e & 63)
			if size > n {
				break
			}
			next := bits >> size
			if e&flagLit != 0 {
				lens[i] = uint8(e >> shiftValue)
				i++
			} else {
				repeat := int(e>>shiftValue) + int(bits&(1<<size-1)>>(e>>8&15))
				value, err := repeated(lens, i, repeat, e)
				if err != nil {
					c.drop(c.count() - n)
					return c.damage(partLens, err)
				}
				for range repeat {
					lens[i] = value
					i++
				}
			}
			bits = next
			n -= size
		}
		taken := c.count() - n
		c.drop(taken)
		if taken == 0 {
			// With more bits it may turn out to be another symbol, which takes fewer.
			if err := c.need(n + 1); err != nil {
				return err
			}
		}
	}
	return nil
}

// repeated returns the length that symbol 16, 17 or 18 repeats from lens[i] on.
func repeated(lens []uint8, i, repeat int, e uint32) (value uint8, err error) {
	if e&flagPrevious != 0 {
		if i == 0 {
			return 0, errRepeat
		}
		value = lens[i-1]
	}
	if repeat > len(lens)-i {
		return 0, errTooMany
	}
	return value, nil
}

// dynamic makes the tables of a dynamic block, whose header began at bit at, from nlit, ndist and lens.
func (c *core) dynamic(at int64) error {
	if c.lens[endOfBlock] == 0 {
		return c.damageAt(at, partLens, errNoEnd)
	}
	if err := c.work.build(c.own.lit[:], litBits, c.lens[:c.nlit], litSymbols[:]); err != nil {
		return c.damageAt(at, partLens, err)
	}
	if err := c.work.build(c.own.dist[:], distBits, c.lens[c.nlit:c.nlit+c.ndist], distSymbols[:]); err != nil {
		return c.damageAt(at, partLens, err)
	}
	c.block, c.t = Dynamic, &c.own
	return nil
}
