package partition

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/block"
)

func TestParseSelector(t *testing.T) {
	for s, want := range map[string]Selector{
		"2":                {Kind: ByNumber, Number: 2},
		"name=boot=2":      {Kind: ByName, Value: "boot=2"},
		"label=BOOT":       {Kind: ByLabel, Value: "BOOT"},
		"type=esp":         {Kind: ByType, Value: "esp"},
		"gpt":              {Kind: ByTable},
		"range=1M+64k":     {Kind: ByRange, Range: Range{1 << 20, 64 << 10}},
		"range=0+1.5KB":    {Kind: ByRange, Range: Range{0, 1500}},
		"guid=" + diskGUID: {Kind: ByGUID, Value: diskGUID},
	} {
		got, err := ParseSelector(s)
		if err != nil || got != want {
			t.Errorf("ParseSelector(%q) = %+v, %v; want %+v", s, got, err, want)
		}
		if again, err := ParseSelector(got.String()); err != nil || again != got {
			t.Errorf("%q prints as %q, which is %+v, %v", s, got, again, err)
		}
	}
	if s, err := ParseSelector("table"); err != nil || s.Kind != ByTable {
		t.Errorf("table: %v, %v", s, err)
	}
	for s, want := range map[string]string{
		"": "expected a partition number", "0": "expected a partition number", "-1": "expected", "boot": "expected", "99999999999999999999": "expected",
		"nam=x": "not one of", "name=": "nothing after", "guid=12": "not a GUID",
		"range=1M": "OFF+LEN", "range=1M+": "expected a number", "range=x+1": "expected a number", "range=1+0": "length is 0",
		"range=7E+1E": "end is too large",
	} {
		if got, err := ParseSelector(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseSelector(%q) = %+v, %v; want an error with %q", s, got, err, want)
		}
	}
}

// mustParse parses a selector that has to be right.
func mustParse(t testing.TB, s string) Selector {
	t.Helper()
	sel, err := ParseSelector(s)
	if err != nil {
		t.Fatal(err)
	}
	return sel
}

func selectDisk(t testing.TB) *memory {
	d := newMemory(sampleSize)
	table := sample(512)
	table.Partitions[2].Name = "esp"
	if err := WriteGPT(t.Context(), d, table); err != nil {
		t.Fatal(err)
	}
	d.put([]byte("XFSB"), 9<<20)
	d.put([]byte("data"), 9<<20+108)
	return d
}

func TestSelect(t *testing.T) {
	d := selectDisk(t)
	table := mustRead(t, d)
	for s, numbers := range map[string][]int{
		"1": {1}, "9": {9}, "name=esp": {1, 7}, "name=böot 🥾": {2}, "label=data": {2},
		"type=esp": {1}, "type=ESP": {1}, "type=c12a7328-f81f-11d2-ba4b-00a0c93ec93b": {1}, "type=linux-root-x86-64": {7},
		"type=01234567-89ab-4def-8123-456789abcdef": {9}, "guid=aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee": {7},
	} {
		ranges, found, err := table.Select(t.Context(), d, mustParse(t, s))
		if err != nil {
			t.Errorf("%s: %v", s, err)
			continue
		}
		var got []int
		for i, p := range found {
			got = append(got, p.Number)
			if ranges[i] != (Range{p.Start, p.Size}) {
				t.Errorf("%s: range %v of partition %+v", s, ranges[i], p)
			}
		}
		if !reflect.DeepEqual(got, numbers) || len(ranges) != len(found) {
			t.Errorf("%s: partitions %v, want %v", s, got, numbers)
		}
		one, err := table.SelectOne(t.Context(), d, mustParse(t, s))
		if len(numbers) == 1 && (err != nil || one.Number != numbers[0]) {
			t.Errorf("SelectOne %s: %+v, %v", s, one, err)
		}
		if len(numbers) > 1 && (err == nil || err.Error() != "name=esp matches the partitions 1, 7: choose one by its number") {
			t.Errorf("SelectOne %s: %v", s, err)
		}
	}
	for _, s := range []string{"gpt", "table"} {
		ranges, found, err := table.Select(t.Context(), d, mustParse(t, s))
		if err != nil || found != nil || !reflect.DeepEqual(ranges, table.Metadata) {
			t.Errorf("%s: %v, %v, %v", s, ranges, found, err)
		}
		if _, err := table.SelectOne(t.Context(), d, mustParse(t, s)); err == nil {
			t.Errorf("SelectOne %s: no error", s)
		}
	}
}

func TestSelectNothing(t *testing.T) {
	d := selectDisk(t)
	table := mustRead(t, d)
	table.Partitions[3].Name = "a,b"
	for s, want := range map[string]string{
		"name=boo":   `no partition named "boo"; the disk has: 1 esp, 2 böot 🥾, 7 esp, 9 "a,b"`,
		"3":          `no partition number 3; the disk has: 1 esp, 2 böot 🥾, 7 esp, 9 "a,b"`,
		"label=boot": `no partition with the label "boot"; the disk has: 1 (no label), 2 data, 7 (no label), 9 (no label)`,
		"type=swap":  `no partition of type "swap"; the disk has: 1 esp, 2 linux, 7 linux-root-x86-64, 9 01234567-89AB-4DEF-8123-456789ABCDEF`,
	} {
		if _, _, err := table.Select(t.Context(), d, mustParse(t, s)); err == nil || err.Error() != want {
			t.Errorf("%s: %v\nwant %s", s, err, want)
		}
		if _, err := table.SelectOne(t.Context(), d, mustParse(t, s)); err == nil || err.Error() != want {
			t.Errorf("SelectOne %s: %v\nwant %s", s, err, want)
		}
	}
	mbr := mustRead(t, extendedDisk())
	if _, _, err := mbr.Select(t.Context(), d, mustParse(t, "type=0xef")); err == nil || !strings.Contains(err.Error(), "1 linux, 2 extended") {
		t.Errorf("MBR: %v", err)
	}
	if _, found, err := mbr.Select(t.Context(), d, mustParse(t, "type=0x0f")); err != nil || found[0].Number != 4 {
		t.Errorf("MBR: %v, %v", found, err)
	}
	empty := mustRead(t, memoryOf(bootRecord(1)))
	if _, _, err := empty.Select(t.Context(), d, mustParse(t, "1")); err == nil || !strings.Contains(err.Error(), "is empty") {
		t.Errorf("empty: %v", err)
	}
}

func TestSelectOutside(t *testing.T) {
	d := selectDisk(t)
	table := mustRead(t, d)
	var out *block.RangeError
	for _, s := range []string{"9", "range=63M+1048577", "range=64M+1"} {
		d.size = 60 << 20
		if _, _, err := table.Select(t.Context(), d, mustParse(t, s)); !errors.As(err, &out) {
			t.Errorf("%s: %v", s, err)
		}
	}
	// A disk without a table still has ranges.
	var none *Table
	if ranges, _, err := none.Select(t.Context(), d, mustParse(t, "range=1M+1k")); err != nil || !reflect.DeepEqual(ranges, []Range{{1 << 20, 1024}}) {
		t.Errorf("range without a table: %v, %v", ranges, err)
	}
	for _, s := range []string{"1", "gpt", "label=x"} {
		if _, _, err := none.Select(t.Context(), d, mustParse(t, s)); !errors.Is(err, ErrNone) {
			t.Errorf("%s without a table: %v", s, err)
		}
	}
}
