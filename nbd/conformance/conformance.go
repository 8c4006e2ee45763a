// Package conformance tries whether an NBD server keeps the rules of the protocol's specification (doc/proto.md of the NBD project).
//
// [Checks] are the rules, each with a function that tries it over a connection of its own. [Run] tries those that are wanted of one server, a
// [Target], and tells of each a [Result]. It knows no server in particular, and needs nothing of it but a connection: what a server does not offer
// is skipped, with the reason. Package probe, on which it stands, judges the form of everything that the server sends.
package conformance

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// Level says how much a rule binds.
type Level int

// The levels, in the words of the specification. Quality is what it leaves open and clients are glad of.
const (
	Must Level = iota
	Should
	Quality
)

var levels = [...]string{"MUST", "SHOULD", "quality"}

func (l Level) String() string               { return levels[l] }
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// ParseLevel returns the level that text names.
func ParseLevel(text string) (Level, error) {
	for i, name := range levels {
		if strings.EqualFold(name, text) {
			return Level(i), nil
		}
	}
	return 0, fmt.Errorf("%q is not a level: say must, should or quality", text)
}

// Outcome is what came of a check.
type Outcome int

// The outcomes. What a server does wrong is Fail where it must not, Warn where it should not, Note where it could do better.
const (
	Pass Outcome = iota
	Fail
	Warn
	Note
	Skip
)

var outcomes = [...]string{"pass", "fail", "warn", "note", "skip"}

func (o Outcome) String() string               { return outcomes[o] }
func (o Outcome) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// Check is one rule and the way to try it.
type Check struct {
	ID      string // area/name
	Level   Level
	Section string // of the specification
	Rule    string // in one sentence
	needs   need
	try     func(*trial)
}

// ends reports whether the server is not there any more after the check.
func (c *Check) ends() bool { return c.needs&needStop != 0 }

// Needs says what the check asks of a server, in a few words each.
func (c *Check) Needs() []string {
	var words []string
	for _, n := range needs {
		if c.needs&n.bit != 0 {
			words = append(words, n.name)
		}
	}
	return words
}

// Result is what came of one check.
type Result struct {
	ID      string  `json:"check"`
	Level   Level   `json:"level"`
	Outcome Outcome `json:"outcome"`
	Section string  `json:"section"`
	Rule    string  `json:"rule"`
	Detail  string  `json:"detail,omitempty"` // what came and what was expected, or why it was skipped
}

// Checks returns all checks, in the order in which they are tried.
func Checks() []*Check {
	return slices.Concat(greetingChecks, optionChecks, infoChecks, metaChecks, tlsChecks, flagChecks, readChecks, commandChecks, statusChecks,
		extendedChecks, connectionChecks, writeChecks, zeroChecks, trimChecks, shutdownChecks)
}

// Select returns the checks whose ID one of the patterns fits, and whose level is at most l. A pattern is a whole ID, an area, or has the
// wildcards of path.Match; no pattern is all.
func Select(patterns []string, l Level) ([]*Check, error) {
	var chosen []*Check
	used := make([]bool, len(patterns))
	for _, c := range Checks() {
		fits := len(patterns) == 0
		for i, p := range patterns {
			ok, err := path.Match(p, c.ID)
			if err != nil {
				return nil, fmt.Errorf("%q: %w", p, err)
			}
			if ok || strings.HasPrefix(c.ID, p+"/") {
				fits, used[i] = true, true
			}
		}
		if fits && c.Level <= l {
			chosen = append(chosen, c)
		}
	}
	if i := slices.Index(used, false); i >= 0 {
		return nil, fmt.Errorf("no check fits %q", patterns[i])
	}
	return chosen, nil
}

// need is a set of conditions without which a check says nothing.
type need uint32

const (
	needExport      need = 1 << iota // transmission on the export
	needSize                         // smallExport bytes
	needLarge                        // largeExport bytes
	needBytes                        // a minimum block size of 1
	needBlocks                       // a larger one
	needStructured                   // structured replies
	needExtended                     // extended headers
	needContext                      // base:allocation
	needContexts                     // two contexts or more
	needWrite                        // a writable export, and leave to change it
	needReadOnly                     // a read-only export
	needFlush                        // the flags of the export
	needFUA                          //
	needTrim                         //
	needZeroes                       //
	needFastZero                     //
	needCache                        //
	needMultiConn                    //
	needStatus                       // BLOCK_STATUS_PAYLOAD
	needNames                        // a server that refuses unknown names
	needSecure                       // STARTTLS, and a way to encrypt
	needPlain                        // a server without STARTTLS
	needTLSRequired                  // a server that refuses to go on without STARTTLS
	needStop                         // leave to end the server
)

const (
	smallExport = 64 << 10 // bytes that most checks need
	largeExport = 40 << 20 // bytes that those of large requests need
)

// needs names the conditions, and what is the matter where one is not met.
var needs = []struct {
	bit          need
	name, lacked string
}{
	{needExport, "export", "the export cannot be opened"},
	{needSize, "64 KiB", "the export is smaller than 64 KiB"},
	{needLarge, "40 MiB", "the export is smaller than 40 MiB"},
	{needBytes, "minimum block size 1", "the minimum block size is larger than 1"},
	{needBlocks, "minimum block size over 1", "the minimum block size is 1"},
	{needStructured, "structured replies", "the server has no structured replies"},
	{needExtended, "extended headers", "the server has no extended headers"},
	{needContext, "base:allocation", "the export does not offer base:allocation"},
	{needContexts, "two contexts", "the export offers fewer than two meta contexts"},
	{needWrite, "writing", "the export is read-only, or may not be changed"},
	{needReadOnly, "read-only export", "the export can be written"},
	{needFlush, "FLUSH", "the export does not offer FLUSH"},
	{needFUA, "FUA", "the export does not offer FUA"},
	{needTrim, "TRIM", "the export does not offer TRIM"},
	{needZeroes, "WRITE_ZEROES", "the export does not offer WRITE_ZEROES"},
	{needFastZero, "FAST_ZERO", "the export does not offer FAST_ZERO"},
	{needCache, "CACHE", "the export does not offer CACHE"},
	{needMultiConn, "several connections", "the export does not allow several connections"},
	{needStatus, "BLOCK_STATUS_PAYLOAD", "the export does not offer BLOCK_STATUS_PAYLOAD"},
	{needNames, "unknown names refused", "the server takes every export name"},
	{needSecure, "TLS", "the server has no TLS, or no credentials were given"},
	{needPlain, "no TLS", "the server has TLS"},
	{needTLSRequired, "TLS required", "the server does not require TLS"},
	{needStop, "a server that can be ended", "the server was not started for the purpose, so that it is not ended"},
}
