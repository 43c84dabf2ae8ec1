/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#pragma once
/* The kernel's names for the registers of a system call or probe; no program here reads them. */
struct pt_regs {
    unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di;
    unsigned long orig_ax, ip, cs, flags, sp, ss;
};
