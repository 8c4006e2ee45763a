//go:build !purego

#include "textflag.h"

// How far each byte of a block is from its end.
DATA weights<>+0(SB)/8, $0x191a1b1c1d1e1f20
DATA weights<>+8(SB)/8, $0x1112131415161718
DATA weights<>+16(SB)/8, $0x090a0b0c0d0e0f10
DATA weights<>+24(SB)/8, $0x0102030405060708
GLOBL weights<>(SB), RODATA|NOPTR, $32

// func adlerBlocksAVX2(p []byte) (a, b uint32)
//
//	Y0  sum of all bytes, in 4 parts
//	Y1  sum of Y0 before each block: every byte counts 32 times for each block after its own
//	Y2  sum of the bytes times their weights within their block, in 8 parts
//	Y3  weights, Y4 16 times 1, Y5 zero
//
// After 173 blocks, which adlerRun has, no part has more than 2^32 - 1.
TEXT ·adlerBlocksAVX2(SB), NOSPLIT, $0-32
	MOVQ p_base+0(FP), SI
	MOVQ p_len+8(FP), CX
	ADDQ SI, CX
	VPXOR Y0, Y0, Y0
	VPXOR Y1, Y1, Y1
	VPXOR Y2, Y2, Y2
	VPXOR Y5, Y5, Y5
	VMOVDQU weights<>(SB), Y3
	VPCMPEQW Y4, Y4, Y4
	VPSRLW $15, Y4, Y4

block:
	VMOVDQU (SI), Y6
	VPADDD Y0, Y1, Y1
	VPSADBW Y5, Y6, Y7
	VPADDD Y7, Y0, Y0
	VPMADDUBSW Y3, Y6, Y8
	VPMADDWD Y4, Y8, Y8
	VPADDD Y8, Y2, Y2
	ADDQ $32, SI
	CMPQ SI, CX
	JB block

	VPSLLD $5, Y1, Y1
	VPADDD Y1, Y2, Y2

	// The parts of Y0 and Y2 together.
	VEXTRACTI128 $1, Y0, X6
	VPADDD X6, X0, X0
	VPSHUFD $0x4e, X0, X6
	VPADDD X6, X0, X0
	VMOVD X0, AX
	VEXTRACTI128 $1, Y2, X6
	VPADDD X6, X2, X2
	VPSHUFD $0x4e, X2, X6
	VPADDD X6, X2, X2
	VPSHUFD $0xb1, X2, X6
	VPADDD X6, X2, X2
	VMOVD X2, BX
	VZEROUPPER
	MOVL AX, a+24(FP)
	MOVL BX, b+28(FP)
	RET
