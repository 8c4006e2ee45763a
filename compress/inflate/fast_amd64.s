//go:build !purego

#include "textflag.h"
#include "go_asm.h"

// The registers of the loop. R11 and DX are for what lives shortly.
#define ENTRY  AX  // of the table, for the next symbol
#define BITS   BX  // the next bits of the input, the next one lowest
#define COUNT  CX  // of them, in the lowest 6 bits; the others mean nothing
#define IN     SI  // what is loaded next
#define OUT    DI  // where the next byte goes
#define LIT    R8  // tables.lit
#define DIST   R9  // tables.dist
#define LOW    R10 // the first byte that a match may come from
#define LENGTH R12 // of a match
#define IN0    R13 // IN and COUNT before the symbol, which is where the
#define COUNT0 R14 // loop ends if the symbol is not a good one

// LOOKUP finds the entry of the literal/length code for BITS, of which there are litBits at least.
#define LOOKUP \
	MOVL BITS, DX                         \
	ANDL $((1<<const_litBits)-1), DX      \
	MOVL (LIT)(DX*4), ENTRY

// REFILL makes COUNT at least 56. Bits above COUNT that are loaded again are the same as before.
// It reads 8 bytes at IN and goes on by 7 at most.
#define REFILL \
	MOVQ  (IN), R11         \
	SHLXQ COUNT, R11, R11   \
	ORQ   R11, BITS         \
	ADDQ  $7, IN            \
	MOVL  COUNT, DX         \
	SHRL  $3, DX            \
	ANDL  $7, DX            \
	SUBQ  DX, IN            \
	ORL   $56, COUNT

// TAKE takes the bits of ENTRY.
#define TAKE \
	SHRXQ ENTRY, BITS, BITS \
	SUBL  ENTRY, COUNT

// VALUE takes the bits of ENTRY, a length or distance, and puts its base and extra bits into to.
#define VALUE(to) \
	BZHIQ ENTRY, BITS, R11  \
	TAKE                    \
	MOVL  ENTRY, DX         \
	SHRL  $8, DX            \
	SHRXQ DX, R11, to       \
	SHRL  $const_shiftValue, ENTRY \
	ADDQ  ENTRY, to

// LITERAL takes a literal and finds the next entry.
#define LITERAL \
	BEXTRQ ENTRY, BITS, DX  \
	TAKE                    \
	MOVL ENTRY, R11         \
	MOVL (LIT)(DX*4), ENTRY \
	SHRL $const_shiftValue, R11 \
	MOVB R11, (OUT)         \
	INCQ OUT

// SUBTABLE follows ENTRY, a pointer, from table, whose main part is indexed by main bits.
#define SUBTABLE(table, main) \
	SHRQ  $main, BITS       \
	SUBL  $main, COUNT      \
	MOVL  ENTRY, DX         \
	SHRL  $8, DX            \
	ANDL  $15, DX           \
	BZHIQ DX, BITS, R11     \
	SHRL  $const_shiftValue, ENTRY \
	ADDQ  R11, ENTRY        \
	MOVL  (table)(ENTRY*4), ENTRY

// func fastBMI2(c *core, near *nearTable)
//
// Where an iteration begins there are margin bytes of input, of which it reads 7+8 at most, and Slop bytes of room, of which it writes 2 literals,
// 258 bytes of a match and 31 beyond at most. A match is read from LOW on, and no farther than it is written. Entries that point to
// a subtable, and subtables themselves, are as build makes them, so that what they are indexed by lies inside the table.
TEXT ·fastBMI2(SB), NOSPLIT, $16-16
	MOVQ c+0(FP), AX
	MOVQ core_bits(AX), BITS
	MOVQ core_n(AX), COUNT
	MOVQ core_in+0(AX), DX
	MOVQ core_in+8(AX), R11
	LEAQ -const_margin(DX)(R11*1), R11
	MOVQ R11, lastIn-8(SP)
	MOVQ core_ip(AX), IN
	ADDQ DX, IN
	MOVQ core_out+0(AX), DX
	MOVQ core_out+8(AX), R11
	LEAQ -const_Slop(DX)(R11*1), R11
	MOVQ R11, lastOut-16(SP)
	MOVQ core_low(AX), LOW
	ADDQ DX, LOW
	MOVQ core_op(AX), OUT
	ADDQ DX, OUT
	MOVQ core_t(AX), LIT
	LEAQ tables_dist(LIT), DIST
	REFILL
	LOOKUP

loop:
	// ENTRY was found with bits that REFILL does not change.
	CMPQ  IN, lastIn-8(SP)
	JA    exit
	CMPQ  OUT, lastOut-16(SP)
	JA    exit
	REFILL
	TESTL ENTRY, ENTRY
	JPL   first
	LITERAL
	TESTL ENTRY, ENTRY
	JPL   first
	LITERAL
	TESTL ENTRY, ENTRY
	JPL   first
	LITERAL
	JMP   loop

first:
	// At most 22 of 56 bits are taken.
	MOVQ  IN, IN0
	MOVL  COUNT, COUNT0
	TESTL $const_flagExcept, ENTRY
	JNZ   except

length:
	VALUE(LENGTH)

	// 14 bits are left, of which 8 find the distance's entry. It takes up to 28, which are there after REFILL.
	MOVBLZX BITS, DX
	MOVL  (DIST)(DX*4), ENTRY
	REFILL
	TESTL $const_flagExcept, ENTRY
	JNZ   exceptDist

distance:
	VALUE(DX)
	MOVQ  OUT, R11
	SUBQ  DX, R11
	CMPQ  R11, LOW
	JB    back
	CMPQ  DX, $16
	JB    near

	// Each 16 bytes are written before the next ones are read. That two are copied always is cheaper than to guess wrong whether one is enough.
	MOVOU (R11), X0
	MOVOU X0, (OUT)
	MOVOU 16(R11), X1
	LOOKUP
	MOVOU X1, 16(OUT)
	CMPQ  LENGTH, $32
	JA    more
	ADDQ  LENGTH, OUT
	JMP   loop

more:
	ADDQ  OUT, LENGTH // now where the match ends
	ADDQ  $16, R11
	ADDQ  $16, OUT
far:
	ADDQ  $16, R11
	ADDQ  $16, OUT
	MOVOU (R11), X0
	MOVOU X0, (OUT)
	LEAQ  16(OUT), DX
	CMPQ  DX, LENGTH
	JB    far
	MOVQ  LENGTH, OUT
	JMP   loop

near:
	// 16 bytes that repeat with the distance as period, written at multiples of it.
	MOVQ  near+8(FP), R13
	MOVBLZX nearTable_stride(R13)(DX*1), R14
	SHLQ  $4, DX
	MOVOU nearTable_spread(R13)(DX*1), X1
	MOVOU (R11), X0
	PSHUFB X1, X0
	LOOKUP
	ADDQ  OUT, LENGTH // now where the match ends
repeat:
	MOVOU X0, (OUT)
	ADDQ  R14, OUT
	CMPQ  OUT, LENGTH
	JB    repeat
	MOVQ  LENGTH, OUT
	JMP   loop

except:
	TESTL $const_flagSub, ENTRY
	JZ    back
	SUBTABLE(LIT, const_litBits)
	TESTL $const_flagExcept, ENTRY
	JNZ   back
	TESTL ENTRY, ENTRY
	JPL   length
	LITERAL
	JMP   loop

exceptDist:
	TESTL $const_flagSub, ENTRY
	JZ    back
	SUBTABLE(DIST, const_distBits)
	TESTL $const_flagExcept, ENTRY
	JZ    distance

back:
	MOVQ IN0, IN
	MOVL COUNT0, COUNT

exit:
	MOVQ c+0(FP), AX
	SUBQ core_in+0(AX), IN
	MOVQ IN, core_ip(AX)
	SUBQ core_out+0(AX), OUT
	MOVQ OUT, core_op(AX)
	ANDL $63, COUNT
	MOVQ COUNT, core_n(AX)
	RET
