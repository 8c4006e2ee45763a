package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/nbd/server"
)

// folderExports are the regular files of a folder. A file is opened for the first connection that asks for it, and closed after the last.
type folderExports struct {
	*serving
	ctx  context.Context // of the server: opening goes on for others when the client that it began for is gone
	root *os.Root

	mu    sync.Mutex
	files map[string]*sharedFile // that are open, or being opened or closed
}

// sharedFile is a file that connections use.
type sharedFile struct {
	mu    sync.Mutex // held while the file is opened or closed
	users int        // under the mu of folderExports: connections that have it or wait for it
	image *served    // under mu; nil while it is not open
}

// openFolder looks at the folder whose files are served.
func (s *serving) openFolder(ctx context.Context) (exports, error) {
	root, err := os.OpenRoot(s.folder)
	if err != nil {
		return nil, nameFile(s.folder, cause(err))
	}
	return &folderExports{serving: s, ctx: ctx, root: root, files: map[string]*sharedFile{}}, nil
}

// cause returns what is wrong without the name of the file.
func cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// isExport reports whether name is that of a file which may be an export: it lies in the folder itself, and is not hidden.
func (f *folderExports) isExport(name string) bool {
	if strings.HasPrefix(name, ".") || strings.ContainsAny(name, "/\x00") || !filepath.IsLocal(name) || filepath.Base(name) != name {
		return false
	}
	fi, err := f.root.Stat(name) // not through a link that leads out
	return err == nil && fi.Mode().IsRegular()
}

func (f *folderExports) list(context.Context, server.Client) ([]server.Listing, error) {
	entries, err := fs.ReadDir(f.root.FS(), ".")
	if err != nil {
		return nil, err
	}
	var list []server.Listing
	for _, e := range entries {
		if f.isExport(e.Name()) {
			list = append(list, server.Listing{Name: e.Name()})
		}
	}
	return list, nil
}

func (f *folderExports) open(_ context.Context, c server.Client) (*server.Export, error) {
	name, canonical := c.Export, ""
	if name == "" {
		name, canonical = f.fallback, f.fallback
	}
	if !f.isExport(name) {
		return nil, server.ErrUnknownExport
	}
	file := f.enter(name)
	file.mu.Lock()
	defer file.mu.Unlock()
	if file.image == nil {
		image, err := f.serveImage(func(o chain.Options) (*chain.Image, error) { return chain.OpenIn(f.ctx, f.root, name, o) })
		if err != nil {
			f.logger.Warn("cannot be served", "export", name, "why", message(err))
			_ = f.leave(name, file) // it is not open
			// Where the folder lies is no client's business.
			return nil, errors.New(strings.TrimPrefix(message(err), f.root.Name()+string(filepath.Separator)))
		}
		image.name = name
		file.image = image
		f.logger.Info("opened", "export", name)
	}
	e := file.image.export(canonical)
	e.Close = func() error {
		file.mu.Lock()
		defer file.mu.Unlock()
		return f.leave(name, file)
	}
	return e, nil
}

// enter counts a connection to a file.
func (f *folderExports) enter(name string) *sharedFile {
	f.mu.Lock()
	defer f.mu.Unlock()
	file := f.files[name]
	if file == nil {
		file = &sharedFile{}
		f.files[name] = file
	}
	file.users++
	return file
}

// leave counts a connection off, and closes the file after the last one. The caller holds the file's lock, so that whoever comes meanwhile waits, and
// opens it again.
func (f *folderExports) leave(name string, file *sharedFile) error {
	if f.count(name, file, -1) > 0 {
		return nil
	}
	var err error
	if file.image != nil {
		err = file.image.close(f.ctx)
		file.image = nil
		f.logger.Info("closed", "export", name)
	}
	f.count(name, file, 0)
	return err
}

// count adds to the connections of a file and returns their number. A file that has none is forgotten.
func (f *folderExports) count(name string, file *sharedFile, add int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	file.users += add
	if file.users == 0 && add == 0 {
		delete(f.files, name)
	}
	return file.users
}

// close closes the folder: its files have been closed with the last connection.
func (f *folderExports) close(context.Context) error { return f.root.Close() }
