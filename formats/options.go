package formats

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/imgtool/imgtool/internal/sizes"
)

// OptionDoc describes one option of a format, for help and manual.
type OptionDoc struct {
	Name    string   // as the user writes it before the =
	Kind    string   // on|off, number, size, text; with Enum the values, separated by |
	Enum    []string // the values there are; nil where any will do
	Default string   // as the user would write it; "" where it is empty
	Help    string   // one line
}

// ParseOptions returns a copy of what def points to, a struct that holds the defaults, in which the named options are set. Fields are
// options where they have the tag `option:"name"`; `help:"..."` describes them, and `enum:"a|b|c"` says which texts are legal.
//
// A field is a bool (on, off, true, false, yes, no, 1, 0), an int (decimal), an int64 (a size, such as 64k) or a string; any other type
// is a mistake of the program and panics. An unknown name is an error that lists the known ones. A nil def has no options.
func ParseOptions[T any](def T, values map[string]string) (T, error) {
	var none T
	v := reflect.ValueOf(def)
	if !v.IsValid() {
		for _, key := range slices.Sorted(maps.Keys(values)) {
			return none, fmt.Errorf("unknown option %q: there are none here", key)
		}
		return none, nil
	}
	c := reflect.New(v.Elem().Type())
	c.Elem().Set(v.Elem())
	known := optionFields(c.Elem())
	for _, key := range slices.Sorted(maps.Keys(values)) {
		i := slices.IndexFunc(known, func(f optionField) bool { return f.Name == key })
		if i < 0 {
			return none, fmt.Errorf("unknown option %q: known are %s", key, strings.Join(names(known), ", "))
		}
		if err := known[i].set(values[key]); err != nil {
			return none, fmt.Errorf("option %s=%s: %w", key, values[key], err)
		}
	}
	return c.Interface().(T), nil
}

// OptionsHelp describes the options of the struct that def points to, in its order. A nil def has none.
func OptionsHelp(def any) []OptionDoc {
	if def == nil {
		return nil
	}
	var docs []OptionDoc
	for _, f := range optionFields(reflect.ValueOf(def).Elem()) {
		docs = append(docs, f.OptionDoc)
	}
	return docs
}

// optionField is a field of an options struct together with what its tags say.
type optionField struct {
	OptionDoc
	v reflect.Value
}

func optionFields(s reflect.Value) []optionField {
	var fields []optionField
	for i := range s.NumField() {
		tag := s.Type().Field(i).Tag
		name := tag.Get("option")
		if name == "" {
			continue
		}
		f := optionField{OptionDoc{Name: name, Help: tag.Get("help")}, s.Field(i)}
		switch v := s.Field(i); v.Kind() {
		case reflect.Bool:
			f.Kind, f.Default = "on|off", "off"
			if v.Bool() {
				f.Default = "on"
			}
		case reflect.Int:
			f.Kind, f.Default = "number", strconv.FormatInt(v.Int(), 10)
		case reflect.Int64:
			f.Kind, f.Default = "size", strconv.FormatInt(v.Int(), 10)
		case reflect.String:
			f.Kind, f.Default = "text", v.String()
			if enum := tag.Get("enum"); enum != "" {
				f.Kind, f.Enum = enum, strings.Split(enum, "|")
			}
		default:
			panic(fmt.Sprintf("formats: option %s has type %s", name, v.Type()))
		}
		fields = append(fields, f)
	}
	return fields
}

func names(fields []optionField) []string {
	var s []string
	for _, f := range fields {
		s = append(s, f.Name)
	}
	return s
}

// set stores the user's text in the field.
func (f optionField) set(text string) error {
	switch f.v.Kind() {
	case reflect.Bool:
		switch strings.ToLower(text) {
		case "on", "true", "yes", "1":
			f.v.SetBool(true)
		case "off", "false", "no", "0":
			f.v.SetBool(false)
		default:
			return errors.New("say on or off")
		}
	case reflect.Int:
		n, err := strconv.Atoi(text)
		if err != nil {
			return errors.New("not a number")
		}
		f.v.SetInt(int64(n))
	case reflect.Int64:
		n, err := sizes.ParseSize(text)
		if err != nil {
			return err
		}
		f.v.SetInt(n)
	case reflect.String:
		if f.Enum != nil && !slices.Contains(f.Enum, text) {
			return fmt.Errorf("say one of %s", strings.Join(f.Enum, ", "))
		}
		f.v.SetString(text)
	}
	return nil
}
