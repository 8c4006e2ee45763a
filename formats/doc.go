// Package formats says what an image format is to the rest of imgtool: a [Driver], in a [Registry] that is tried in a written order.
//
// A driver does up to eight things, each a function that may be nil where the format cannot do it: Probe recognises the format by its
// bytes; Open reads an image as a device; Decode reads it from front to back, where the source is a pipe; Create makes an image that is
// written at any place; Plan and PlanStream make one from front to back; Check looks for contradictions; Measure says how long a new
// image gets. What else some formats have (snapshots, bitmaps, a backing file) is found on the open image. A driver holds no state: everything that an image needs to be
// opened comes in [OpenOptions], everything that it needs to be made comes in [CreateOptions].
//
// What drivers may ask of their surroundings goes through three narrow doors:
//
//   - [Head] is what Probe sees: the first bytes, and other ranges only when asked.
//   - [Store] makes the files that a new image consists of, and gives them their names only when all of them are done.
//   - [Opener] opens what an image refers to (backing files, extents, parents) once a [Gate] has let it pass. Without one the answer is no.
//
// Options of a format are one struct with tags; [ParseOptions] fills it and [OptionsHelp] describes it, so that parsing, help and
// manual can not differ.
//
// The drivers stand in the folders below this one; package formats/all lists them.
package formats
