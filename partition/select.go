package partition

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/internal/sizes"
)

// SelectorKind says what a Selector looks at.
type SelectorKind uint8

const (
	ByNumber SelectorKind = iota + 1 // the partition with a number
	ByName                           // partitions by Name
	ByLabel                          // partitions by FS.Label
	ByType                           // partitions by Type or TypeID
	ByGUID                           // the partition with a GUID
	ByTable                          // the partition table's own bytes
	ByRange                          // any bytes of the disk
)

// Selector says which part of a disk is meant. ParseSelector makes one.
type Selector struct {
	Kind   SelectorKind
	Number int    // ByNumber: from 1
	Value  string // ByName, ByLabel, ByType, ByGUID: what to look for
	Range  Range  // ByRange
}

// String returns the selector as ParseSelector reads it.
func (s Selector) String() string {
	switch s.Kind {
	case ByNumber:
		return strconv.Itoa(s.Number)
	case ByName:
		return "name=" + s.Value
	case ByLabel:
		return "label=" + s.Value
	case ByType:
		return "type=" + s.Value
	case ByGUID:
		return "guid=" + s.Value
	case ByTable:
		return "gpt"
	case ByRange:
		return fmt.Sprintf("range=%d+%d", s.Range.Off, s.Range.Len)
	}
	return fmt.Sprintf("partition.Selector(%d)", s.Kind)
}

// ParseSelector reads a selector:
//
//	2               the partition with this number
//	name=boot       the partitions with this name (GPT)
//	label=BOOT      the partitions whose file system has this label
//	type=esp        the partitions of this type: a short name, a GUID or a number such as 0xEF
//	guid=GUID       the partition with this GUID (GPT)
//	gpt, table      the partition table itself, whatever its scheme
//	range=OFF+LEN   LEN bytes from OFF, both as sizes.ParseSize reads them
//
// Names and labels are compared as they are, types and GUIDs in either case.
func ParseSelector(s string) (Selector, error) {
	if s == "gpt" || s == "table" {
		return Selector{Kind: ByTable}, nil
	}
	key, value, found := strings.Cut(s, "=")
	if !found {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return Selector{}, fmt.Errorf("selector %q: expected a partition number, name=, label=, type=, guid=, gpt or range=OFF+LEN", s)
		}
		return Selector{Kind: ByNumber, Number: n}, nil
	}
	if value == "" {
		return Selector{}, fmt.Errorf("selector %q: nothing after the equals sign", s)
	}
	switch key {
	case "name":
		return Selector{Kind: ByName, Value: value}, nil
	case "label":
		return Selector{Kind: ByLabel, Value: value}, nil
	case "type":
		return Selector{Kind: ByType, Value: value}, nil
	case "guid":
		g, err := parseGUID(value)
		if err != nil {
			return Selector{}, fmt.Errorf("selector %q: %w", s, err)
		}
		return Selector{Kind: ByGUID, Value: g.String()}, nil
	case "range":
		r, err := parseRange(value)
		if err != nil {
			return Selector{}, fmt.Errorf("selector %q: %w", s, err)
		}
		return Selector{Kind: ByRange, Range: r}, nil
	}
	return Selector{}, fmt.Errorf("selector %q: %q is not one of name, label, type, guid, range", s, key)
}

// parseRange reads OFF+LEN.
func parseRange(s string) (Range, error) {
	off, n, found := strings.Cut(s, "+")
	if !found {
		return Range{}, errors.New("expected OFF+LEN")
	}
	var r Range
	var err error
	if r.Off, err = sizes.ParseSize(off); err != nil {
		return Range{}, err
	}
	if r.Len, err = sizes.ParseSize(n); err != nil {
		return Range{}, err
	}
	if r.Len == 0 {
		return Range{}, errors.New("the length is 0")
	}
	if _, ok := block.Add(r.Off, r.Len); !ok {
		return Range{}, errors.New("the end is too large")
	}
	return r, nil
}

// Select returns the ranges of d that s means, at least one, and the partitions that they are, if they are. All ranges lie inside d.
//
// Several partitions may match by name, label or type; callers that want one use SelectOne. A selector by range works on a nil
// Table, a disk without one; every other fails there. ByLabel calls ProbeFileSystems, with its cost and its change to t. An error for a
// selector that matches nothing says what there is.
func (t *Table) Select(ctx context.Context, d block.Device, s Selector) ([]Range, []Partition, error) {
	if s.Kind == ByRange {
		if err := block.CheckRange(s.Range.Off, s.Range.Len, d.Size()); err != nil {
			return nil, nil, fmt.Errorf("%v: %w", s, err)
		}
		return []Range{s.Range}, nil, nil
	}
	if t == nil {
		return nil, nil, fmt.Errorf("%v: %w; range=OFF+LEN works on any disk", s, ErrNone)
	}
	if s.Kind == ByTable {
		return slices.Clone(t.Metadata), nil, nil
	}
	if s.Kind == ByLabel {
		if err := t.ProbeFileSystems(ctx, d); err != nil {
			return nil, nil, err
		}
	}
	var ranges []Range
	var found []Partition
	for _, p := range t.Partitions {
		if !s.matches(p) {
			continue
		}
		if err := block.CheckRange(p.Start, p.Size, d.Size()); err != nil {
			return nil, nil, fmt.Errorf("partition %d does not fit into the disk: %w", p.Number, err)
		}
		ranges = append(ranges, Range{p.Start, p.Size})
		found = append(found, p)
	}
	if len(found) == 0 {
		return nil, nil, t.missing(s)
	}
	return ranges, found, nil
}

// SelectOne returns the one partition that s means. It is an error where there are several, or where s does not select partitions.
// Otherwise it is as Select.
func (t *Table) SelectOne(ctx context.Context, d block.Device, s Selector) (Partition, error) {
	if s.Kind == ByRange || s.Kind == ByTable {
		return Partition{}, fmt.Errorf("%v: expected a selector of one partition", s)
	}
	_, found, err := t.Select(ctx, d, s)
	if err != nil {
		return Partition{}, err
	}
	if len(found) > 1 {
		numbers := make([]string, len(found))
		for i, p := range found {
			numbers[i] = strconv.Itoa(p.Number)
		}
		return Partition{}, fmt.Errorf("%v matches the partitions %s: choose one by its number", s, strings.Join(numbers, ", "))
	}
	return found[0], nil
}

// matches reports whether a selector of partitions means p.
func (s Selector) matches(p Partition) bool {
	switch s.Kind {
	case ByNumber:
		return p.Number == s.Number
	case ByName:
		return p.Name == s.Value
	case ByLabel:
		return p.FS.Label == s.Value
	case ByType:
		return strings.EqualFold(p.Type, s.Value) || strings.EqualFold(p.TypeID, s.Value)
	case ByGUID:
		return strings.EqualFold(p.GUID, s.Value)
	}
	return false
}

// missing returns the error for a selector that matches no partition: it lists what there is.
func (t *Table) missing(s Selector) error {
	if len(t.Partitions) == 0 {
		return fmt.Errorf("no partition %v; the partition table is empty", s)
	}
	const most = 16 // more than that helps nobody
	what, column := fmt.Sprintf("number %d", s.Number), func(p Partition) string { return cmp.Or(p.Name, p.Type) }
	switch s.Kind {
	case ByName:
		what, column = fmt.Sprintf("named %q", s.Value), func(p Partition) string { return cmp.Or(p.Name, "(no name)") }
	case ByLabel:
		what, column = fmt.Sprintf("with the label %q", s.Value), func(p Partition) string { return cmp.Or(p.FS.Label, "(no label)") }
	case ByType:
		what, column = fmt.Sprintf("of type %q", s.Value), func(p Partition) string { return p.Type }
	case ByGUID:
		what, column = "with the GUID "+s.Value, func(p Partition) string { return cmp.Or(p.GUID, "(no GUID)") }
	}
	var have []string
	for _, p := range t.Partitions[:min(most, len(t.Partitions))] {
		have = append(have, fmt.Sprintf("%d %s", p.Number, printable(column(p))))
	}
	if n := len(t.Partitions) - most; n > 0 {
		have = append(have, fmt.Sprintf("and %d more", n))
	}
	return fmt.Errorf("no partition %s; the disk has: %s", what, strings.Join(have, ", "))
}

// printable returns a name from a disk as it is, or quoted where a terminal or a list would suffer from it.
func printable(name string) string {
	if q := strconv.Quote(name); len(q) != len(name)+2 || strings.Contains(name, ",") {
		return q
	}
	return name
}
