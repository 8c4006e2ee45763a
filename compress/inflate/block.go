package inflate

// lensOrder is the order in which the lengths of the code length code come: section 3.2.7.
var lensOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

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
	total := c.nlit + c.ndist
	for i := 0; i < total; {
		c.top()
		e := c.pre[c.bits&(1<<preBits-1)]
		symbol, code := e>>shiftValue, int(e&63)
		extra, repeat := 0, 1
		switch symbol {
		case 16:
			extra, repeat = 2, 3
		case 17:
			extra, repeat = 3, 3
		case 18:
			extra, repeat = 7, 11
		}
		if c.count() < code+extra {
			// With more bits it may turn out to be another symbol, which takes fewer.
			if err := c.need(c.count() + 1); err != nil {
				return err
			}
			continue
		}
		at := c.bitOffset()
		repeat += int(c.bits >> code & (1<<extra - 1))
		c.drop(code + extra)
		value := uint8(symbol)
		if symbol >= 16 {
			value = 0
		}
		if symbol == 16 {
			if i == 0 {
				return c.damageAt(at, partLens, errRepeat)
			}
			value = c.lens[i-1]
		}
		if repeat > total-i {
			return c.damageAt(at, partLens, errTooMany)
		}
		for range repeat {
			c.lens[i] = value
			i++
		}
	}
	return nil
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
