/* SPDX-License-Identifier: BSD-3-Clause */
/* The smallest guest that a replica can be shown with: a boot sector.
 *
 * It appends records of one sector to its own disk for as long as it runs,
 * about 290 a second (16 for each tick of the PC's clock).  Record N lies in
 * sector FIRST + N - 1 and carries its number and a checksum.  When it boots
 * it first reads what is there, says on the serial port "last record N", and
 * goes on with N + 1: so what it says after a failover is what the
 * recovered disk holds.
 *
 * Assemble:  as --32 -o guest.o quickstart-guest.S
 *            ld -m elf_i386 -Ttext 0x7c00 --oformat binary -o guest.bin guest.o
 */
        .code16
        .intel_syntax noprefix
        .text
        .globl  _start

        .set    FIRST, 2048             /* the sector of record 1 */
        .set    MAGIC, 0x4642434d       /* "MCBF" */
        .set    BUFFER, 0x8000          /* 64 sectors, up to 0xffff */
        .set    BATCH, 64
        .set    COM1, 0x3f8

/* A record: MAGIC, number, 125 words made from the number, sum of it all. */

_start: cld
        xor     ax, ax
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     sp, 0x7c00
        mov     drive, dl
        sti
        mov     esi, 1                  /* ESI: the next record's number */

        /* Read the records that are there, 64 at a time. */
scan:   mov     byte ptr count, BATCH
        mov     ah, 0x42
        call    disk
        jc      found                   /* end of the disk */
        mov     di, BUFFER
1:      call    check
        jne     found
        inc     esi
        add     di, 512
        jnz     1b                      /* BUFFER ends where DI wraps */
        jmp     scan

found:  mov     bx, offset s_last
        call    report
        mov     byte ptr count, 1

        /* Write on and on. */
write:  mov     di, BUFFER
        call    make
        mov     ax, 0x4300
        call    disk
        jc      full
        inc     esi
        mov     ax, si
        dec     ax
        test    al, 0xff                /* say so every 256 records */
        jnz     2f
        mov     bx, offset s_record
        call    report
2:      test    al, 0x0f
        jnz     write
        hlt                             /* until the next tick */
        jmp     write

full:   mov     bx, offset s_full
        call    report
3:      hlt
        jmp     3b

/* AX: read (0x42xx) or write (0x43xx) COUNT sectors from record ESI on.
 * Carry: failed.
 */
disk:   lea     ecx, [esi + FIRST - 1]
        mov     lba, ecx
        push    si
        mov     si, offset packet
        mov     dl, drive
        int     0x13
        pop     si
        ret

/* Fill the buffer at DI with record ESI. */
make:   push    di
        mov     eax, MAGIC
        stosd
        mov     eax, esi
        mov     cx, 126
4:      stosd
        imul    eax, eax, 1103515245
        add     eax, 12345
        loop    4b
        pop     di
        call    sum
        mov     [di + 508], eax
        ret

/* EAX: the sum of the first 127 words at DI, each rotated on. */
sum:    push    si
        mov     si, di
        mov     cx, 127
        xor     edx, edx
5:      lodsd
        add     edx, eax
        rol     edx, 1
        loop    5b
        mov     eax, edx
        pop     si
        ret

/* Zero flag: the buffer at DI holds record ESI, whole. */
check:  cmp     dword ptr [di], MAGIC
        jne     6f
        cmp     [di + 4], esi
        jne     6f
        call    sum
        cmp     [di + 508], eax
6:      ret

/* Print the text at BX, the number of the last record, and a new line. */
report: push    ax
7:      mov     al, [bx]
        inc     bx
        test    al, al
        jz      8f
        call    putc
        jmp     7b
8:      lea     eax, [esi - 1]
        mov     ecx, 10
        push    cx                      /* 10 is no digit: the end */
9:      xor     edx, edx
        div     ecx
        push    dx
        test    eax, eax
        jnz     9b
10:     pop     ax
        cmp     al, 10
        je      11f
        add     al, '0'
        call    putc
        jmp     10b
11:     mov     al, '\r'
        call    putc
        mov     al, '\n'
        call    putc
        pop     ax
        ret

/* AL to the serial port. */
putc:   push    ax
        mov     dx, COM1 + 5
12:     in      al, dx
        test    al, 0x20
        jz      12b
        pop     ax
        mov     dx, COM1
        out     dx, al
        ret

s_last:   .asciz "last record "
s_record: .asciz "wrote record "
s_full:   .asciz "disk full at record "

        /* The BIOS's disk address packet. */
        .balign 4
packet: .byte   16, 0
count:  .byte   0, 0
        .word   BUFFER, 0
lba:    .long   0, 0
drive:  .byte   0

        .org    510
        .word   0xaa55
