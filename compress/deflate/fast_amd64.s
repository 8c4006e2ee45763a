//go:build !purego

#include "go_asm.h"
#include "textflag.h"

// The hash that a place is looked up by, fastHash.
#define MULTIPLIER $0x9e3779b1
#define SHIFT $(32-const_tableBits)

// In the kernels of the matcher SI is src, DI the lanes, R13 minus the window, BP counts the steps.

// LOOKUP sets here and next to minus the distances at which there may be matches for the place and the next one.
#define LOOKUP(off, here, next) \
	MOVQ    off+lane_at(DI), AX; \
	MOVQ    off+lane_table(DI), BX; \
	IMUL3L  MULTIPLIER, (SI)(AX*1), CX; \
	IMUL3L  MULTIPLIER, 1(SI)(AX*1), DX; \
	SHRL    SHIFT, CX; \
	SHRL    SHIFT, DX; \
	LEAQ    1(AX), R11; \
	MOVWLZX (BX)(CX*2), R10; \
	MOVW    AX, (BX)(CX*2); \
	MOVWLZX (BX)(DX*2), R12; \
	MOVW    R11, (BX)(DX*2); \
	SUBQ    AX, R10; \
	SUBQ    R11, R12; \
	ORQ     R13, R10; \
	ORQ     R13, R12; \
	MOVQ    R10, here; \
	MOVQ    R12, next

// COMPARE sets the bits of a and b where the bytes from the place and from the next one are equal to those that were looked up.
#define COMPARE(off, here, next, a, b) \
	MOVQ      off+lane_at(DI), AX; \
	VMOVDQU   (SI)(AX*1), X0; \
	VMOVDQU   1(SI)(AX*1), X1; \
	ADDQ      SI, AX; \
	MOVQ      here, R10; \
	MOVQ      next, R12; \
	VPCMPEQB  (AX)(R10*1), X0, X0; \
	VPCMPEQB  1(AX)(R12*1), X1, X1; \
	VPMOVMSKB X0, a; \
	VPMOVMSKB X1, b

// DECIDE makes the step: the longer match, the first of two that are equally long, or two literals.
#define DECIDE(off, here, next, a, b, long, measured, stop, going) \
	MOVQ    off+lane_at(DI), AX; \
	MOVQ    here, R10; \
	MOVL    (SI)(AX*1), CX; \
	NOTL    a; \
	NOTL    b; \
	TZCNTL  a, a; \
	TZCNTL  b, b; \
	XORL    R11, R11; \
	CMPL    b, a; \
	SETHI   R11; \
	CMOVQHI next, R10; \
	CMOVLHI b, a; \
	CMPL    a, $const_fastChoice; \
	JEQ     long; \
measured: \
	MOVQ    off+lane_next(DI), DX; \
	MOVL    $2, b; \
	LEAQ    (a)(R11*1), R12; \
	CMPL    a, $const_fastMatch; \
	CMOVLCS b, R12; \
	MOVL    CX, (DX)(BP*8); \
	ADDQ    R12, AX; \
	MOVB    R11, 2(DX)(BP*8); \
	MOVW    R10, 4(DX)(BP*8); \
	MOVW    R12, 6(DX)(BP*8); \
	MOVQ    AX, off+lane_at(DI); \
	MOVQ    off+lane_table(DI), BX; \
	IMUL3L  MULTIPLIER, -1(SI)(AX*1), R11; \
	SHRL    SHIFT, R11; \
	LEAQ    -1(AX), R12; \
	MOVW    R12, (BX)(R11*2); \
	CMPQ    AX, off+lane_stop(DI); \
	JGE     stop; \
going:

// RARELY is what the steps jump to: the rest of a long match, and the end of a lane.
#define RARELY(a, b, long, more, found, measured, stop, going) \
stop: \
	MOVQ    $0, quota-8(SP); \
	JMP     going; \
long: \
	LEAQ    (SI)(AX*1), R12; \
	ADDQ    R11, R12; \
	LEAQ    (R12)(R10*1), b; \
more: \
	VMOVDQU (R12)(a*1), X0; \
	VPCMPEQB (b)(a*1), X0, X0; \
	VPMOVMSKB X0, DX; \
	XORL    $0xffff, DX; \
	JNE     found; \
	ADDL    $const_fastChoice, a; \
	CMPL    a, $const_maxMatch; \
	JCS     more; \
	MOVL    $const_maxMatch, a; \
	JMP     measured; \
found: \
	TZCNTL  DX, DX; \
	ADDL    DX, a; \
	CMPL    a, $const_maxMatch; \
	JLS     measured; \
	MOVL    $const_maxMatch, a; \
	JMP     measured

#define ENTER \
	MOVQ lanes+0(FP), DI; \
	MOVQ src+8(FP), SI; \
	MOVQ back+16(FP), R13; \
	MOVQ quota+24(FP), BP; \
	MOVQ BP, quota-8(SP); \
	XORL BP, BP

#define AGAIN(loop) \
	INCQ BP; \
	CMPQ BP, quota-8(SP); \
	JLT  loop; \
	MOVQ BP, ret+32(FP); \
	RET

// func match4(lanes *[maxLanes]lane, src *byte, back, quota int) int
TEXT ·match4(SB), NOSPLIT, $72-40
	ENTER
loop:
	LOOKUP(0*lane__size, here0-24(SP), next0-16(SP))
	LOOKUP(1*lane__size, here1-40(SP), next1-32(SP))
	LOOKUP(2*lane__size, here2-56(SP), next2-48(SP))
	LOOKUP(3*lane__size, here3-72(SP), next3-64(SP))
	COMPARE(0*lane__size, here0-24(SP), next0-16(SP), R8, R9)
	COMPARE(1*lane__size, here1-40(SP), next1-32(SP), R14, R15)
	DECIDE(0*lane__size, here0-24(SP), next0-16(SP), R8, R9, long0, measured0, stop0, going0)
	COMPARE(2*lane__size, here2-56(SP), next2-48(SP), R8, R9)
	DECIDE(1*lane__size, here1-40(SP), next1-32(SP), R14, R15, long1, measured1, stop1, going1)
	COMPARE(3*lane__size, here3-72(SP), next3-64(SP), R14, R15)
	DECIDE(2*lane__size, here2-56(SP), next2-48(SP), R8, R9, long2, measured2, stop2, going2)
	DECIDE(3*lane__size, here3-72(SP), next3-64(SP), R14, R15, long3, measured3, stop3, going3)
	AGAIN(loop)
	RARELY(R8, R9, long0, more0, found0, measured0, stop0, going0)
	RARELY(R14, R15, long1, more1, found1, measured1, stop1, going1)
	RARELY(R8, R9, long2, more2, found2, measured2, stop2, going2)
	RARELY(R14, R15, long3, more3, found3, measured3, stop3, going3)

// func match3(lanes *[maxLanes]lane, src *byte, back, quota int) int
TEXT ·match3(SB), NOSPLIT, $72-40
	ENTER
loop:
	LOOKUP(0*lane__size, here0-24(SP), next0-16(SP))
	LOOKUP(1*lane__size, here1-40(SP), next1-32(SP))
	LOOKUP(2*lane__size, here2-56(SP), next2-48(SP))
	COMPARE(0*lane__size, here0-24(SP), next0-16(SP), R8, R9)
	COMPARE(1*lane__size, here1-40(SP), next1-32(SP), R14, R15)
	DECIDE(0*lane__size, here0-24(SP), next0-16(SP), R8, R9, long0, measured0, stop0, going0)
	COMPARE(2*lane__size, here2-56(SP), next2-48(SP), R8, R9)
	DECIDE(1*lane__size, here1-40(SP), next1-32(SP), R14, R15, long1, measured1, stop1, going1)
	DECIDE(2*lane__size, here2-56(SP), next2-48(SP), R8, R9, long2, measured2, stop2, going2)
	AGAIN(loop)
	RARELY(R8, R9, long0, more0, found0, measured0, stop0, going0)
	RARELY(R14, R15, long1, more1, found1, measured1, stop1, going1)
	RARELY(R8, R9, long2, more2, found2, measured2, stop2, going2)

// func match2(lanes *[maxLanes]lane, src *byte, back, quota int) int
TEXT ·match2(SB), NOSPLIT, $72-40
	ENTER
loop:
	LOOKUP(0*lane__size, here0-24(SP), next0-16(SP))
	LOOKUP(1*lane__size, here1-40(SP), next1-32(SP))
	COMPARE(0*lane__size, here0-24(SP), next0-16(SP), R8, R9)
	COMPARE(1*lane__size, here1-40(SP), next1-32(SP), R14, R15)
	DECIDE(0*lane__size, here0-24(SP), next0-16(SP), R8, R9, long0, measured0, stop0, going0)
	DECIDE(1*lane__size, here1-40(SP), next1-32(SP), R14, R15, long1, measured1, stop1, going1)
	AGAIN(loop)
	RARELY(R8, R9, long0, more0, found0, measured0, stop0, going0)
	RARELY(R14, R15, long1, more1, found1, measured1, stop1, going1)

// func match1(lanes *[maxLanes]lane, src *byte, back, quota int) int
TEXT ·match1(SB), NOSPLIT, $72-40
	ENTER
loop:
	LOOKUP(0*lane__size, here0-24(SP), next0-16(SP))
	COMPARE(0*lane__size, here0-24(SP), next0-16(SP), R8, R9)
	DECIDE(0*lane__size, here0-24(SP), next0-16(SP), R8, R9, long0, measured0, stop0, going0)
	AGAIN(loop)
	RARELY(R8, R9, long0, more0, found0, measured0, stop0, going0)

// COUNT counts the step at SI in one of the tables at DI and brings it into the form in which it is written. AX is what it covers, BX 1 for
// a literal before a match, CX the distance - 1 and then its extra bits, R9 how many, R10 the distance symbol, R11 the second symbol, R12 the
// first.
#define COUNT(at, table) \
	MOVWLZX at+6(SI), AX; \
	MOVBLZX at+2(SI), BX; \
	MOVWLZX at+4(SI), CX; \
	MOVBLZX at+0(SI), DX; \
	MOVBLZX at+1(SI), R8; \
	ADDQ    AX, R13; \
	NOTL    CX; \
	ANDL    $(const_maxDistance-1), CX; \
	MOVL    CX, R9; \
	ORL     $2, R9; \
	LZCNTL  R9, R9; \
	XORL    $31, R9; \
	DECL    R9; \
	SHRXL   R9, CX, R10; \
	BZHIL   R9, CX, CX; \
	LEAL    (R10)(R9*2), R10; \
	LEAL    (const_stepLength-const_minMatch)(AX), R11; \
	SUBL    BX, R11; \
	MOVBLZX AX, R12; \
	ORL     $const_noFirst, R12; \
	MOVL    DX, R15; \
	ORL     $-32, R15; \
	TESTL   BX, BX; \
	CMOVLNE DX, R12; \
	CMPL    AX, $2; \
	CMOVLLS DX, R12; \
	CMOVLLS R8, R11; \
	CMOVLLS R14, CX; \
	CMOVLLS R15, R10; \
	ANDL    $63, R10; \
	CMPL    AX, $1; \
	MOVL    $const_noSecond, AX; \
	CMOVLEQ AX, R11; \
	INCL    table+stepCounts_first(DI)(R12*4); \
	INCL    table+stepCounts_second(DI)(R11*4); \
	INCL    table+stepCounts_dist(DI)(R10*4); \
	SHLL    $16, R11; \
	SHLL    $16, CX; \
	ORL     R11, R12; \
	ORL     CX, R10; \
	MOVL    R12, at+0(SI); \
	MOVL    R10, at+4(SI)

// TALLY counts a step that has the form in which it is written.
#define TALLY(at, table) \
	MOVWLZX at+0(SI), AX; \
	MOVWLZX at+2(SI), BX; \
	MOVWLZX at+4(SI), CX; \
	INCL    table+stepCounts_first(DI)(AX*4); \
	INCL    table+stepCounts_second(DI)(BX*4); \
	INCL    table+stepCounts_dist(DI)(CX*4)

#define CONSTANT(value, x, y) \
	MOVL         $(value), AX; \
	VMOVD        AX, x; \
	VPBROADCASTD x, y

// func countSteps(c *[2]stepCounts, steps *step, n int) int
//
// Four steps at a time are brought into the form in which they are written, their upper and their lower halves in different elements of
// the same vectors.
TEXT ·countSteps(SB), NOSPLIT, $8-32
	MOVQ     c+0(FP), DI
	MOVQ     steps+8(FP), SI
	MOVQ     n+16(FP), BP
	XORL     R13, R13
	XORL     R14, R14
	SUBQ     $4, BP
	JLT      few
	VPXOR    Y7, Y7, Y7
	VPCMPEQD Y8, Y8, Y8
	CONSTANT(1, X9, Y9)
	CONSTANT(2, X10, Y10)
	CONSTANT(const_maxDistance-1, X11, Y11)
	CONSTANT(254, X12, Y12)
	CONSTANT(const_noFirst, X13, Y13)
	CONSTANT(0xff, X14, Y14)
	CONSTANT(31, X15, Y15)
four:
	VMOVDQU (SI), Y0

	// Y1 is the distance - 1. Its exponent and the first bit of its mantissa as a floating-point number are the symbol, Y2.
	VPANDN    Y11, Y0, Y1
	VCVTDQ2PS Y1, Y2
	VPSRLD    $22, Y2, Y2
	VPSUBD    Y12, Y2, Y2
	VPMINUD   Y9, Y1, Y3
	VPMAXSD   Y3, Y2, Y2

	// Y3 is how many extra bits there are, then those.
	VPSRLD   $1, Y2, Y3
	VPSUBUSW Y9, Y3, Y3
	VPSLLVD  Y3, Y8, Y3
	VPANDN   Y1, Y3, Y3
	VPSLLD   $16, Y3, Y3
	VPOR     Y3, Y2, Y2

	// The upper halves of matches are Y2, of literals Y3.
	VPSRLD    $16, Y0, Y4
	VPCMPGTD  Y10, Y4, Y5
	VPSLLQ    $32, Y0, Y3
	VPAND     Y15, Y3, Y3
	VPSLLD    $5, Y9, Y6
	VPOR      Y6, Y3, Y3
	VPBLENDVB Y5, Y2, Y3, Y2

	// Y1 is what the step covers, Y3 whether there is a literal before a match, Y5 whether there is a match, Y4 the second symbol.
	VPSRLQ    $48, Y0, Y1
	VPADDQ    Y1, Y7, Y7
	VPAND     Y9, Y4, Y3
	VPCMPEQD  Y9, Y3, Y3
	VPADDD    Y3, Y1, Y4
	VPADDD    Y12, Y4, Y4
	VPADDD    Y8, Y4, Y4
	VPCMPGTD  Y10, Y1, Y5
	VPSRLD    $8, Y0, Y6
	VPAND     Y14, Y6, Y6
	VPBLENDVB Y5, Y4, Y6, Y4
	VPCMPEQD  Y9, Y1, Y6
	VPSRLD    $31, Y6, Y6
	VPSLLD    $9, Y6, Y6
	VPOR      Y6, Y4, Y4
	VPSLLD    $16, Y4, Y4

	// The first symbol.
	VPANDN    Y5, Y3, Y3
	VPAND     Y14, Y1, Y1
	VPOR      Y13, Y1, Y1
	VPAND     Y14, Y0, Y0
	VPBLENDVB Y3, Y1, Y0, Y0
	VPOR      Y4, Y0, Y0
	VPBLENDD  $0xaa, Y2, Y0, Y0
	VMOVDQU   Y0, (SI)

	TALLY(0, 0)
	TALLY(8, stepCounts__size)
	TALLY(16, 0)
	TALLY(24, stepCounts__size)
	ADDQ $32, SI
	SUBQ $4, BP
	JGE  four

	VEXTRACTI128 $1, Y7, X1
	VPADDQ       X1, X7, X7
	VPSRLDQ      $8, X7, X1
	VPADDQ       X1, X7, X7
	VMOVQ        X7, R13
	VZEROUPPER
few:
	ADDQ $4, BP
	JEQ  done
	COUNT(0, 0)
	CMPQ BP, $1
	JEQ  done
	COUNT(8, stepCounts__size)
	CMPQ BP, $2
	JEQ  done
	COUNT(16, 0)
done:
	MOVQ R13, ret+24(FP)
	RET

// func writeSteps(out *byte, c *stepCodes, steps *step, n int, acc uint64, bits uint) (written int, waiting uint64, count uint)
TEXT ·writeSteps(SB), NOSPLIT, $8-72
	MOVQ out+0(FP), DI
	MOVQ c+8(FP), R8
	MOVQ steps+16(FP), SI
	MOVQ n+24(FP), BP
	MOVQ acc+32(FP), R13
	MOVQ bits+40(FP), R14
	LEAQ (SI)(BP*8), BP
	CMPQ SI, BP
	JEQ  done
loop:
	MOVWLZX 0(SI), AX
	MOVWLZX 2(SI), BX
	MOVWLZX 4(SI), CX
	MOVWLZX 6(SI), DX
	MOVL    stepCodes_first(R8)(AX*8), R9
	MOVL    stepCodes_first+stepCode_bits(R8)(AX*8), R10
	MOVL    stepCodes_second(R8)(BX*8), R11
	MOVL    stepCodes_second+stepCode_bits(R8)(BX*8), R12
	MOVL    stepCodes_dist(R8)(CX*8), R15
	MOVWLZX stepCodes_dist+distCode_bits(R8)(CX*8), AX
	MOVWLZX stepCodes_dist+distCode_all(R8)(CX*8), CX
	SHLXQ   R10, R11, R11
	SHLXQ   AX, DX, DX
	ADDL    R12, R10
	ORQ     R15, DX
	ORQ     R11, R9
	SHLXQ   R10, DX, DX
	ADDL    CX, R10
	ORQ     DX, R9
	SHLXQ   R14, R9, R9
	ADDL    R10, R14
	ORQ     R9, R13
	MOVL    R14, AX
	MOVQ    R13, (DI)
	ANDL    $56, AX
	ANDL    $7, R14
	SHRXQ   AX, R13, R13
	SHRL    $3, AX
	ADDQ    $8, SI
	ADDQ    AX, DI
	CMPQ    SI, BP
	JNE     loop
done:
	SUBQ out+0(FP), DI
	MOVQ DI, written+48(FP)
	MOVQ R13, waiting+56(FP)
	MOVQ R14, count+64(FP)
	RET
