package imgtool_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/convert"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/all"
	"github.com/imgtool/imgtool/segment"
)

// Any image is opened as a device, and any device is an io.ReaderAt. In place of pattern:1M, which needs no file, the text can be disk.qcow2,
// disk.raw.gz or disk.vmdk::part=2.
func Example_readerAt() {
	ctx := context.Background()
	img, err := chain.Open(ctx, "pattern:1M", chain.Options{
		Registry: all.Drivers(),
		Gate:     formats.DirGate, // backing files are opened in the image's own folder only
	})
	if err != nil {
		log.Fatal(err)
	}
	defer img.Close()

	r := block.At(ctx, img.Device)
	section := io.NewSectionReader(r, 4096, 8)
	content, err := io.ReadAll(section)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s, %d bytes, at byte 4096: %x\n", img.Format(), r.Size(), content)
	// Output: raw, 1048576 bytes, at byte 4096: 0000000000001000
}

// What was downloaded is converted, and what was written is read again and compared before it takes its name.
func Example_downloadConvertVerify() {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		z := gzip.NewWriter(w)
		disk := append(bytes.Repeat([]byte("disk"), 100<<10), make([]byte, 8<<20)...)
		_, _ = z.Write(disk)
		_ = z.Close()
	}))
	defer server.Close()
	dir, err := os.MkdirTemp("", "imgtool")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	downloaded, converted := filepath.Join(dir, "disk.raw.gz"), filepath.Join(dir, "disk.qcow2")

	download := func() error {
		resp, err := http.Get(server.URL)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		f, err := os.Create(downloaded)
		if err != nil {
			return err
		}
		if _, err := io.Copy(f, resp.Body); err != nil {
			return err
		}
		return f.Close()
	}
	convertAndVerify := func(ctx context.Context) error {
		o := chain.Options{Registry: all.Drivers()} // without a gate, nothing that an image refers to is opened
		src, err := chain.Open(ctx, downloaded, o)
		if err != nil {
			return err
		}
		defer src.Close()
		target, err := chain.Create(ctx, converted, chain.CreateOptions{})
		if err != nil {
			return err
		}
		defer target.Abort() // removes what has not been committed
		plan, err := o.Registry.Lookup("qcow2").Plan(ctx, src.Device, formats.CreateOptions{Compress: true})
		if err != nil {
			return err
		}
		if _, err := segment.Write(ctx, segment.ToDevice(target.Device), plan, segment.Options{}); err != nil {
			return err
		}

		o.Format = "qcow2"
		copied, err := target.Reopen(ctx, o)
		if err != nil {
			return err
		}
		result, err := convert.Compare(ctx, src.Device, copied.Device, false, convert.Options{})
		if err != nil {
			return err
		}
		if err := copied.Close(); err != nil {
			return err
		}
		if result.Difference != convert.Same {
			return fmt.Errorf("the copy differs at byte %d", result.Off)
		}
		fmt.Printf("%d bytes are the %s\n", result.SizeB, result.Difference)
		return target.Commit(ctx)
	}
	if err := download(); err != nil {
		log.Fatal(err)
	}
	if err := convertAndVerify(context.Background()); err != nil {
		log.Fatal(err)
	}
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		log.Fatal(err)
	}
	for _, name := range names {
		fmt.Println(filepath.Base(name))
	}
	// Output:
	// 8798208 bytes are the same
	// disk.qcow2
	// disk.raw.gz
}

// An overlay takes what is written, and shows its base everywhere else.
func Example_overlay() {
	dir, err := os.MkdirTemp("", "imgtool")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	base, overlay := filepath.Join(dir, "base.raw"), filepath.Join(dir, "overlay.qcow2")
	if err := os.WriteFile(base, bytes.Repeat([]byte("base"), 256), 0o666); err != nil {
		log.Fatal(err)
	}

	create := func(ctx context.Context) error {
		target, err := chain.Create(ctx, overlay, chain.CreateOptions{})
		if err != nil {
			return err
		}
		defer target.Abort()
		d, err := all.Drivers().Lookup("qcow2").Create(ctx, target, formats.CreateOptions{
			Size:   1024,
			Values: map[string]string{"backing_file": "base.raw", "backing_fmt": "raw"},
		})
		if err != nil {
			return err
		}
		if err := d.Close(); err != nil {
			return err
		}
		return target.Commit(ctx)
	}
	write := func(ctx context.Context) error {
		img, err := chain.Open(ctx, overlay, chain.Options{Registry: all.Drivers(), Gate: formats.DirGate, Write: true})
		if err != nil {
			return err
		}
		defer img.Close()
		if err := img.Device.Write(ctx, []byte("over"), 8, 0); err != nil {
			return err
		}
		p := make([]byte, 16)
		if err := img.Device.Read(ctx, p, 0); err != nil {
			return err
		}
		fmt.Printf("overlay: %s\n", p)
		return img.Device.Flush(ctx)
	}
	ctx := context.Background()
	if err := create(ctx); err != nil {
		log.Fatal(err)
	}
	if err := write(ctx); err != nil {
		log.Fatal(err)
	}
	p, err := os.ReadFile(base)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("base: %s\n", p[:16])
	// Output:
	// overlay: basebaseoverbase
	// base: basebasebasebase
}
