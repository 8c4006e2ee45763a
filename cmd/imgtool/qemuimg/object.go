package qemuimg

import (
	"maps"
	"slices"
	"strings"
)

// Secret is what --object secret,... defines: a key or a passphrase.
type Secret struct {
	ID   string
	data string // as given
	file string // that holds it
	b64  bool   // what is given, or in the file, is base64
}

// keyFile returns the file that holds the secret, which is called id.
func (s Secret) keyFile(id string) (string, error) {
	switch {
	case s.ID == "":
		return "", wrong("No secret with id '%s'", id)
	case s.file == "" || s.b64:
		return "", wrong("secret '%s' is not a file as it is: keys are read from files only, so say file=PATH", id)
	}
	return s.file, nil
}

// secrets returns the objects of a command line by their IDs.
func secrets(definitions []string) (map[string]Secret, error) {
	all := map[string]Secret{}
	for _, text := range definitions {
		s, err := parseSecret(text)
		if err != nil {
			return nil, err
		}
		if _, twice := all[s.ID]; twice {
			return nil, wrong("attempt to add duplicate property '%s' to object (type 'container')", s.ID)
		}
		all[s.ID] = s
	}
	return all, nil
}

// parseSecret reads secret,id=ID,data=TEXT or the same as JSON.
func parseSecret(text string) (Secret, error) {
	options, err := objectOptions(text)
	if err != nil {
		return Secret{}, err
	}
	if kind := options["qom-type"]; kind != "secret" {
		return Secret{}, wrong("Parameter 'qom-type' does not accept value '%s'", kind)
	}
	s := Secret{ID: options["id"], data: options["data"], file: options["file"], b64: options["format"] == "base64"}
	switch {
	case s.ID == "":
		return Secret{}, wrong("Parameter 'id' is missing")
	case options["format"] != "" && options["format"] != "raw" && !s.b64:
		return Secret{}, wrong("Parameter 'format' does not accept value '%s'", options["format"])
	case options["keyid"] != "" || options["iv"] != "":
		return Secret{}, wrong("secret '%s' is encrypted with another one, which imgtool does not read", s.ID)
	}
	known := []string{"qom-type", "id", "data", "file", "format", "keyid", "iv"}
	for _, key := range slices.Sorted(maps.Keys(options)) {
		if !slices.Contains(known, key) {
			return Secret{}, wrong("Parameter '%s' is unexpected", key)
		}
	}
	switch {
	case s.data != "" && s.file != "":
		return Secret{}, wrong("'file' and 'data' are mutually exclusive")
	case s.data == "" && s.file == "":
		return Secret{}, wrong("Either 'file' or 'data' must be provided")
	}
	return s, nil
}

// objectOptions returns the options of an object, its type among them.
func objectOptions(text string) (map[string]string, error) {
	if strings.HasPrefix(text, "{") {
		options, err := flatten(text)
		if err != nil {
			return nil, wrong("Could not parse the JSON object: %v", err)
		}
		return options, nil
	}
	parts := splitOptions(text)
	options := map[string]string{"qom-type": parts[0]}
	for _, pair := range parts[1:] {
		key, value, _ := strings.Cut(pair, "=")
		options[key] = value
	}
	return options, nil
}
