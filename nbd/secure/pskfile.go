package secure

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os/user"
	"strings"

	"github.com/imgtool/imgtool/block"
)

// Bytes that an identity and a key have at most. RFC 4279 asks implementations for 128 and 64.
const (
	maxIdentity = 1 << 10
	maxKey      = 1 << 10
)

// readPSK returns the keys of a file by identity.
func readPSK(name string) (map[string][]byte, error) {
	data, err := readFile(name)
	if err != nil {
		return nil, err
	}
	keys, err := parsePSK(data)
	if err != nil {
		return nil, fmt.Errorf("tls: %s: %w", name, err)
	}
	return keys, nil
}

// parsePSK reads lines of the form identity:hexkey. Empty lines and lines that begin with # are skipped; but #hex:hexkey is an identity in hexadecimal, as
// psktool writes one that has a colon. Errors never show the key.
func parsePSK(data []byte) (map[string][]byte, error) {
	keys := map[string][]byte{}
	lineOf := map[string]int{}
	n := 0
	for line := range bytes.Lines(data) {
		n++
		text := strings.TrimRight(string(line), "\r\n")
		if strings.TrimSpace(text) == "" {
			continue
		}
		identity, key, err := parseKeyLine(text)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if identity == "" {
			continue
		}
		if first, ok := lineOf[identity]; ok {
			return nil, fmt.Errorf("line %d: identity %q has a key on line %d already", n, identity, first)
		}
		keys[identity], lineOf[identity] = key, n
	}
	if len(keys) == 0 {
		return nil, block.WithHint(errors.New("there is no key in it"), "psktool -u IDENTITY -p FILE makes one")
	}
	return keys, nil
}

// parseKeyLine returns what a line says; the identity of a comment is "".
func parseKeyLine(line string) (identity string, key []byte, err error) {
	identity, digits, ok := strings.Cut(line, ":")
	key, err = hex.DecodeString(strings.TrimRight(digits, " \t"))
	if comment, hash := strings.CutPrefix(line, "#"); hash {
		coded, _, _ := strings.Cut(comment, ":")
		raw, notHex := hex.DecodeString(coded)
		if !ok || err != nil || notHex != nil || len(raw) == 0 {
			return "", nil, nil
		}
		identity = string(raw)
	}
	switch {
	case !ok:
		return "", nil, errors.New("there is no colon between identity and key")
	case identity == "":
		return "", nil, errors.New("there is no identity before the colon")
	case len(identity) > maxIdentity:
		return "", nil, fmt.Errorf("the identity is longer than %d bytes", maxIdentity)
	case err != nil: // its text would show a part of the key
		return "", nil, fmt.Errorf("the key of %q is not hexadecimal", identity)
	case len(key) == 0:
		return "", nil, fmt.Errorf("the key of %q is empty", identity)
	case len(key) > maxKey:
		return "", nil, fmt.Errorf("the key of %q is longer than %d bytes", identity, maxKey)
	}
	return identity, key, nil
}

// userName returns the login name of the user.
func userName() (string, error) {
	u, err := user.Current()
	if err != nil {
		return "", err
	}
	// On Windows the domain stands before it.
	return u.Username[strings.LastIndexByte(u.Username, '\\')+1:], nil
}
