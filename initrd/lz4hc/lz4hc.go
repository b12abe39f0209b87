// Package lz4hc encodes and decodes blocks of LZ4.
//
// The encoder's blocks have a size that is given: each holds as much input as
// fits, by an exact parse over the longest match at each position. That is what
// a filesystem with compressed blocks of a fixed size wants.
//
// The format is that of the LZ4 block format specification
// (https://github.com/lz4/lz4/blob/dev/doc/lz4_Block_format.md): sequences of a
// token, literals, a two-byte offset and a match. High and low half of the token
// hold the number of literals and the length of the match less 4; a half of 15
// continues in bytes that are added up until one is not 255. The last sequence
// has literals only.
package lz4hc

// The block format's figures, named as the specification names them where it
// does.
const (
	minMatch     = 4  // shortest match
	lastLiterals = 5  // a block with matches ends with at least so many literals
	matchLimit   = 12 // MFLIMIT: no match begins closer to the block's end
	maxOffset    = 65535

	offsetSize   = 2   // bytes of a match's offset
	lengthEscape = 15  // half a token that is continued in bytes
	lengthByte   = 255 // value of a byte after which the length goes on
)

// MaxInput is the most input of one block, in bytes: what a block of 4 KiB can
// hold at LZ4's best ratio of 255, and so the point from which on a block of
// zeros would grow beyond one page. It bounds what a reader decodes for one byte.
const MaxInput = 254 << 12

// Level is a balance of time and size.
type Level int

// The levels.
const (
	Fast Level = iota
	Default
	Max
)
