package plan

import (
	"github.com/klauspost/compress/zstd"

	"github.com/imgtool/imgtool/compress/deflate"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// Levels where none is given.
const (
	defaultZlibLevel = 6
	defaultZstdLevel = 3
)

// packer compresses clusters. It is used by one goroutine at a time.
type packer struct {
	zlib  *deflate.Encoder
	zstd  *zstd.Encoder
	plain []byte // a run as it is read
}

// level returns the effort of compression.
func (g *geometry) level() int {
	switch {
	case g.Level > 0:
		return g.Level
	case g.header.CompressionType == ondisk.CompressionZstd:
		return defaultZstdLevel
	}
	return defaultZlibLevel
}

// packerBytes returns about how much memory a packer needs beside its run, in bytes.
func (g *geometry) packerBytes() int64 {
	if g.header.CompressionType == ondisk.CompressionZstd {
		switch zstd.EncoderLevelFromZstd(g.level()) {
		case zstd.SpeedBestCompression:
			return 48 << 20
		case zstd.SpeedBetterCompression:
			return 8 << 20
		}
		return 2 << 20
	}
	if g.level() >= 8 {
		return 16 << 20
	}
	return 4 << 20
}

func (g *geometry) newPacker() (*packer, error) {
	p := &packer{}
	var err error
	if g.header.CompressionType == ondisk.CompressionZstd {
		p.zstd, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(g.level())), zstd.WithEncoderConcurrency(1),
			zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true), zstd.WithAllLitEntropyCompression(true))
	} else {
		p.zlib, err = deflate.NewEncoder(deflate.Options{Level: g.level(), Window: int(g.Window)})
	}
	return p, err
}

// pack appends a cluster to dst: compressed, or as it is where that does not make it shorter.
func (p *packer) pack(dst, cluster []byte) []byte {
	n := len(dst)
	if p.zstd != nil {
		dst = p.zstd.EncodeAll(cluster, dst)
	} else {
		dst = p.zlib.Append(dst, cluster, deflate.Final)
	}
	if len(dst)-n >= len(cluster) {
		dst = append(dst[:n], cluster...)
	}
	return dst
}
