/* Where the boot ROM jumps to, and where traps do. a0 is the hart's number; only hart 0 comes here.
 *
 * .data needs no copying: the image is loaded into RAM anew at every boot, right where it was linked.
 */
    .option arch, +zicsr

    .section .text.start, "ax", @progbits
    .globl _start
    .type _start, @function
_start:
    csrci   mstatus, 8              /* no interrupts (MIE) until the main loop wants them */
    csrw    mie, zero
    .option push
    .option norelax
    la      gp, __global_pointer$
    .option pop
    la      sp, stack_top
    la      t0, trap_entry
    csrw    mtvec, t0
    la      t0, trap_stack_top
    csrw    mscratch, t0

    la      t0, bss_start
    la      t1, bss_end
1:  bgeu    t0, t1, 2f
    sw      zero, 0(t0)
    addi    t0, t0, 4
    j       1b
2:  call    main
3:  wfi
    j       3b
    .size _start, . - _start

/* mscratch holds the top of the trap stack, and zero while it is in use: a fault in the fault handler must not fill
 * memory with frames. Its own stack, because the interrupted one may be what is broken. */
    .set    FRAME_BYTES, 32 * 4

    .section .text.trap, "ax", @progbits
    .balign 4
    .globl trap_entry
    .type trap_entry, @function
trap_entry:
    csrrw   sp, mscratch, sp
    beqz    sp, 4f
    addi    sp, sp, -FRAME_BYTES
    sw      zero, 0(sp)
    sw      x1, 4(sp)
    .irp    register, 3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    sw      x\register, 4 * \register(sp)
    .endr
    csrrw   t0, mscratch, zero
    sw      t0, 8(sp)
    mv      a0, sp
    call    trap_handle

    addi    t0, sp, FRAME_BYTES
    csrw    mscratch, t0
    lw      x1, 4(sp)
    .irp    register, 3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    lw      x\register, 4 * \register(sp)
    .endr
    lw      sp, 8(sp)
    mret
4:  wfi
    j       4b
    .size trap_entry, . - trap_entry
