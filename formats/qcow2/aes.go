package qcow2

import (
	"context"
	"crypto/aes"
	stdcipher "crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// prepareCrypt readies the cipher of an encrypted image, or says why it cannot be read.
func (d *Device) prepareCrypt(_ context.Context, opts *Options) error {
	switch d.h.CryptMethod {
	case ondisk.CryptLUKS:
		return block.ErrorOf(errors.ErrUnsupported, "the image is encrypted with LUKS, which this version does not read")
	case ondisk.CryptAES:
		if d.writable {
			return block.ErrorOf(errors.ErrUnsupported, "the image is encrypted with AES in CBC mode, which is not safe: it can only be read")
		}
		if opts.KeyFile == "" {
			return block.WithHint(fmt.Errorf("the image is encrypted with AES: %w: none is given", block.ErrKey), "key-file=FILE names a file that holds the password")
		}
		key, err := readKey(opts.KeyFile)
		if err != nil {
			return err
		}
		d.crypt, err = newAESCipher(key)
		return err
	}
	return nil
}

// readKey reads a password. No more of it counts than a key has.
func readKey(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, aesKeySize))
}

// aesKeySize is the length of a key in bytes, of which the specification says twice as much as QEMU has ever used.
const aesKeySize = 16

// aesCipher is the encryption of crypt_method 1: AES-128 in CBC mode over sectors of the disk, of which the initialization vector is the number of the sector
// in little-endian order. The key is the password, cut or filled with zeros; whether it is the right one cannot be known.
type aesCipher struct{ stdcipher.Block }

func newAESCipher(password []byte) (cipher, error) {
	var key [aesKeySize]byte
	copy(key[:], password)
	b, err := aes.NewCipher(key[:])
	return aesCipher{b}, err
}

// decrypt implements cipher.
func (a aesCipher) decrypt(p []byte, guest, _ int64) error {
	var iv [aes.BlockSize]byte
	for ; len(p) > 0; p, guest = p[ondisk.SectorSize:], guest+ondisk.SectorSize {
		binary.LittleEndian.PutUint64(iv[:], uint64(guest)/ondisk.SectorSize)
		stdcipher.NewCBCDecrypter(a, iv[:]).CryptBlocks(p[:ondisk.SectorSize], p[:ondisk.SectorSize])
	}
	return nil
}

// encrypt implements cipher. Nothing is written with a cipher that is not safe.
func (a aesCipher) encrypt(_, _ []byte, _, _ int64) error { return errors.ErrUnsupported }
