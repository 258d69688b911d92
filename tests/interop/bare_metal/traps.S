    # Every exception, its mcause, where mepc points in relation to the instruction, and mstatus. The handler goes on
    # at the address in s1. Compressed instructions are used where a label says so.
    # Faults of amoadd are not compared: QEMU 7.2 reports a load fault where the specification asks for a store fault.
    .option arch, +zicsr
    .section .text.start
    .globl _start
    .option norvc
_start:
    la sp, stack_top
    la t0, handler
    csrw mtvec, t0


    .macro case name, instruction:vararg
    la a0, 8f
    call puts
    la s1, 2f
    la s2, 1f
1:  \instruction
    la a0, 9f
    call puts
2:
    .section .rodata
8:  .asciz "\name\n"
9:  .asciz "no trap\n"
    .text
    .endm

    .text
    li s3, 0x0a000000             # nothing is there on either board
    li s4, 0x80000402
    case "illegal", .word 0xffffffff
    case "csr that does not exist", csrr t0, 0x5c0
    case "read-only csr written", csrw mhartid, t0
    case "read-only csr read", csrrs t0, mhartid, zero
    case "ecall", ecall
    case "ebreak", ebreak
    case "load fault", lw t0, 0(s3)
    case "byte load fault", lbu t0, 1(s3)
    case "store fault", sw t0, 0(s3)
    case "lr fault", lr.w t0, (s3)
    case "fetch fault", jr s3
    case "lr misaligned", lr.w t0, (s4)
    case "sc misaligned", sc.w t0, t0, (s4)
    case "misaligned load", lw t0, 0(s4)
    .option rvc
    .option arch, +c
    case "compressed illegal", .half 0
    case "compressed ebreak", c.ebreak
    mv a5, s3
    case "compressed load fault", c.lw a4, 0(a5)
    li a0, 0x5555
    li t0, 0x100000
    sw a0, 0(t0)
1:  j 1b

    .option norvc
    .align 2
handler:
    la a0, text_cause
    csrr a1, mcause
    call hex
    la a0, text_epc
    csrr a1, mepc
    sub a1, a1, s2
    csrr t0, mcause
    li t1, 1
    bne t0, t1, 1f
    csrr a1, mepc
1:  call hex
    la a0, text_status
    csrr a1, mstatus
    li t0, 0x1888
    and a1, a1, t0
    call hex
    csrr a1, mcause
    li t0, 4
    blt a1, t0, 1f
    li t0, 8
    bge a1, t0, 1f
    la a0, text_value
    csrr a1, mtval
    call hex
1:  csrw mepc, s1
    mret

puts:
    li t0, 0x10000000
1:  lbu t1, 0(a0)
    beqz t1, 2f
    sb t1, 0(t0)
    addi a0, a0, 1
    j 1b
2:  ret

hex:
    mv s5, ra
    call puts
    li t2, 28
1:  srl t1, a1, t2
    andi t1, t1, 15
    addi t1, t1, 48
    li t3, 58
    blt t1, t3, 2f
    addi t1, t1, 39
2:  sb t1, 0(t0)
    addi t2, t2, -4
    bgez t2, 1b
    li t1, 10
    sb t1, 0(t0)
    mv ra, s5
    ret

    .section .rodata
text_cause:  .asciz "  mcause="
text_epc:    .asciz "  mepc="
text_status: .asciz "  mstatus="
text_value:  .asciz "  mtval="
