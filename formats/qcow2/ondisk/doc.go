// Package ondisk holds the structures of a qcow2 file, versions 2 and 3, as QEMU's specification (docs/interop/qcow2) names them: bytes in,
// structs out, and back. All numbers in the file are big-endian.
//
// It knows no devices but to read a header or a directory from one, keeps no state, and trusts nothing: what it returns without an error is
// inside the limits of limits.go. Whether places lie inside the file is judged by those who follow them.
package ondisk

// Format is the name of the format in errors.
const Format = "qcow2"
