module github.com/imgtool/imgtool

go 1.26
