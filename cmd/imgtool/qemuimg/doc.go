// Package qemuimg understands the command line of qemu-img 7.2 and says it in imgtool's own words.
//
// [Parse] reads a command line and returns a [Call]: what imgtool is to be called with, and what qemu-img's options ask of the program besides.
// It opens nothing. What is written wrongly, and what imgtool does not do, is an [Error] in the words of qemu-img, for callers match on them.
// [Help] is the text of --help, which lists what is understood.
//
// Images are named as qemu-img has it: a name is a path, in which no sign has a meaning of its own, unless a colon stands before its first
// slash. Then it is file:PATH, a URL, or json:{...}, and with --image-opts it is a list of options. Sizes are those of qemu-img too.
package qemuimg
