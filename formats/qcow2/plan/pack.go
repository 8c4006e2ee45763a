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

// packerBytes is about what a packer needs beside its run, in bytes.
const packerBytes = 2 << 20

// packer compresses clusters. It is used by one goroutine at a time.
type packer struct {
	zlib  *deflate.Encoder
	zstd  *zstd.Encoder
	plain []byte // a run as it is read
}

func (g *geometry) newPacker() (*packer, error) {
	p := &packer{}
	var err error
	if g.header.CompressionType == ondisk.CompressionZstd {
		level := g.Level
		if level == 0 {
			level = defaultZstdLevel
		}
		p.zstd, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(level)), zstd.WithEncoderConcurrency(1),
			zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true), zstd.WithAllLitEntropyCompression(true))
	} else {
		level := g.Level
		if level == 0 {
			level = defaultZlibLevel
		}
		p.zlib, err = deflate.NewEncoder(deflate.Options{Level: level, Window: int(g.Window)})
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
