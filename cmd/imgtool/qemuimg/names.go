package qemuimg

import (
	"encoding/json"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/imgtool/imgtool/chain"
)

// image is what a name means.
type image struct {
	chain  string // as imgtool takes it
	source string // the path or URL in it
	format string // that the name says; "" where it says none
	share  bool   // neither take locks nor look at those of others
	keyed  bool   // the format stands in the chain, with a key
}

// jsonPrefix begins a name that is a JSON object of options.
const jsonPrefix = "json:"

// passed reports whether the URLs of a protocol mean the same to imgtool.
func passed(scheme string) bool {
	return slices.Contains([]string{"nbd", "nbds", "nbd+unix", "nbds+unix", "nbd+vsock", "nbds+vsock", "http", "https"}, scheme)
}

// named returns what a name means that is not a list of options; keys are the secrets that it may name.
func named(name string, keys map[string]Secret) (image, error) {
	if text, ok := strings.CutPrefix(name, jsonPrefix); ok {
		options, err := flatten(text)
		if err != nil {
			return image{}, cannotOpen(name, "Could not parse the JSON options: "+err.Error())
		}
		return fromOptions(name, options, keys)
	}
	scheme, rest, ok := protocol(name)
	switch {
	case ok && scheme == nbdDriver && !strings.HasPrefix(rest, "//"):
		return olderExport(name)
	case !ok && name == "", ok && rest == "":
		return image{}, cannotOpen(name, noFileName)
	case !ok:
		return path(name), nil
	case scheme == "file", scheme == "host_device":
		return path(rest), nil
	case passed(scheme) && strings.HasPrefix(rest, "//"):
		return at(wholeURI(name)), nil
	}
	return image{}, cannotOpen(name, fmt.Sprintf("Unknown protocol '%s'", scheme))
}

// protocol cuts a name at a colon that stands before its first slash.
func protocol(name string) (scheme, rest string, ok bool) {
	i := strings.IndexAny(name, ":/")
	if i < 0 || name[i] != ':' || i == 1 && runtime.GOOS == "windows" {
		return "", name, false
	}
	return name[:i], name[i+1:], true
}

// path returns the image that a path names: signs of imgtool's grammar stand for themselves, and the path is never taken for another kind of source.
func path(p string) image {
	drive := runtime.GOOS == "windows" && len(p) > 1 && p[1] == ':'
	if p == chain.Standard || strings.HasPrefix(p, "[") || strings.Contains(p, ":") && p[0] != '/' && p[0] != '.' && !drive {
		p = "./" + p
	}
	return image{chain: chain.Spec{Source: p}.String(), source: p}
}

const noFileName = "The 'file' block driver requires a file name"

func cannotOpen(name, why string) error { return wrong("Could not open '%s': %s", name, why) }

// optioned returns what a list of options means.
func optioned(list string, keys map[string]Secret) (image, error) {
	options := map[string]string{}
	if !strings.Contains(list, "=") {
		return image{}, cannotOpen(list, fmt.Sprintf("Cannot find device='%s' nor node-name='%s'", list, list))
	}
	for _, pair := range splitOptions(list) {
		key, value, ok := strings.Cut(pair, "=")
		if !ok {
			value = "on"
		}
		options[key] = value
	}
	return fromOptions(list, options, keys)
}

// splitOptions cuts a list at its commas; two commas stand for one.
func splitOptions(list string) []string {
	var parts []string
	const comma = "\x00"
	for _, part := range strings.Split(strings.ReplaceAll(list, ",,", comma), ",") {
		parts = append(parts, strings.ReplaceAll(part, comma, ","))
	}
	return parts
}

// flatten returns the values of a JSON object; the keys of objects in it have the outer key and a dot before them.
func flatten(text string) (map[string]string, error) {
	var object map[string]any
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&object); err != nil {
		return nil, err
	}
	if d.More() {
		return nil, fmt.Errorf("something follows the object")
	}
	flat := map[string]string{}
	return flat, addFlat(flat, "", object)
}

func addFlat(flat map[string]string, prefix string, object map[string]any) error {
	for key, value := range object {
		key = prefix + key
		switch v := value.(type) {
		case map[string]any:
			if err := addFlat(flat, key+".", v); err != nil {
				return err
			}
		case string:
			flat[key] = v
		case json.Number:
			flat[key] = v.String()
		case bool:
			flat[key] = strconv.FormatBool(v)
		default:
			return fmt.Errorf("'%s' is neither a text nor a number", key)
		}
	}
	return nil
}

// fromOptions returns what the options of a node and of those below it mean. name is what errors call it.
func fromOptions(name string, options map[string]string, keys map[string]Secret) (image, error) {
	options = maps.Clone(options)
	take := func(key string) string {
		value := options[key]
		delete(options, key)
		return value
	}
	if options["driver"] == "" && !slices.ContainsFunc(slices.Collect(maps.Keys(options)), func(k string) bool { return strings.HasPrefix(k, "file.") }) {
		return image{}, cannotOpen(name, "Must specify either driver or file")
	}
	var format, prefix, driver string
	var layers []chain.Layer
	for { // from the format inwards
		driver = take(prefix + "driver")
		for _, key := range []string{"node-name", "cache.direct", "cache.no-flush", "aio"} { // they do not change what the node holds
			take(prefix + key)
		}
		if driver == "file" || driver == "host_device" || driver == nbdDriver || driver == "" && prefix != "" && options[prefix+"filename"] != "" {
			break
		}
		if driver == "raw" && (options[prefix+"offset"] != "" || options[prefix+"size"] != "") {
			window, err := windowOf(take(prefix+"offset"), take(prefix+"size"))
			if err != nil {
				return image{}, cannotOpen(name, err.Error())
			}
			layers = append([]chain.Layer{window}, layers...)
		}
		switch {
		case prefix == "":
			format = driver
		case driver != "raw":
			return image{}, cannotOpen(name, fmt.Sprintf("Unknown driver '%s'", driver))
		}
		prefix += "file."
	}
	if prefix == "" {
		format = "raw"
	}
	img, missing := protocolNode(driver, func(key string) string { return take(prefix + key) })
	key := take("encrypt.key-secret")
	if key != "" {
		take("encrypt.format") // which the image says too
	}
	for _, key := range slices.Sorted(maps.Keys(options)) {
		return image{}, cannotOpen(name, fmt.Sprintf("Block format '%s' does not support the option '%s'", format, key))
	}
	if missing != "" {
		return image{}, cannotOpen(name, missing)
	}
	img.format = format
	if key != "" {
		file, err := keys[key].keyFile(key)
		if err != nil {
			return image{}, cannotOpen(name, err.Error())
		}
		img.keyed = true
		layers = append(layers, chain.Layer{Name: format, Options: []chain.Option{{Key: "key-file", Value: file}}})
	}
	for _, l := range layers {
		img.chain += "::" + l.String()
	}
	return img, nil
}

// protocolNode returns what the innermost node means, of which take returns the options; missing says what they lack.
func protocolNode(driver string, take func(key string) string) (img image, missing string) {
	if driver == nbdDriver {
		return exportNode(take)
	}
	filename, locking := take("filename"), take("locking")
	if filename == "" {
		return image{}, noFileName
	}
	img = path(filename)
	img.share = locking == "off"
	return img, ""
}

// windowOf returns the layer for the offset and the size of a raw node.
func windowOf(offset, size string) (chain.Layer, error) {
	l := chain.Layer{Name: "window"}
	for _, o := range []chain.Option{{Key: "offset", Value: offset}, {Key: "size", Value: size}} {
		if o.Value == "" {
			continue
		}
		n, err := parseSize(o.Value)
		if err != nil {
			return l, fmt.Errorf("option '%s' is not a size", o.Key)
		}
		o.Value = strconv.FormatInt(n, 10)
		l.Options = append(l.Options, o)
	}
	return l, nil
}
