    # A vectored mtvec: exceptions enter at its base, interrupts four bytes on for each code.
    .option arch, +zicsr
    .option norvc
    .section .text.start
    .globl _start
_start:
    la t0, vectors + 1
    csrw mtvec, t0
    csrr t1, mtvec
    andi a0, t1, 3
    call digit
    li s0, 0x2000000
    li s3, 0
    li t0, 8
    csrw mie, t0
    csrsi mstatus, 8
    li t0, 1
    sw t0, 0(s0)             # software interrupt
1:  beqz s3, 1b              # QEMU takes an interrupt a little later
    li s3, 0
    ecall
    li s1, 0x2004000
    li t0, 0x80
    csrw mie, t0
    sw zero, 0(s1)
    sw zero, 4(s1)           # timer interrupt, at once
1:  beqz s3, 1b
    li a0, 9
    call digit
    li t0, 0x100000
    li t1, 0x00073333
    sw t1, 0(t0)
1:  j 1b

    .align 8
vectors:
    j exception
    j 1b
    j 1b
    j software
    j 1b
    j 1b
    j 1b
    j timer

exception:
    li a0, 0
    call digit
    csrr t0, mepc
    addi t0, t0, 4
    csrw mepc, t0
    mret
software:
    sw zero, 0(s0)
    li a0, 3
    j leave
timer:
    csrw mie, zero
    li a0, 7
leave:
    mv s2, ra
    call digit
    mv ra, s2
    li s3, 1
    mret

digit:
    li t5, 0x10000000
    addi a0, a0, 48
    sb a0, 0(t5)
    li a0, 10
    sb a0, 0(t5)
    ret
