/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#pragma once
/* What bcc's own headers and the formats of tracepoints name. */
typedef signed char __s8, s8, int8_t;
typedef unsigned char __u8, u8, uint8_t;
typedef short __s16, s16, int16_t;
typedef unsigned short __u16, u16, uint16_t, umode_t;
typedef int __s32, s32, int32_t, pid_t;
typedef unsigned int __u32, u32, uint32_t, uid_t, gid_t, gfp_t, fmode_t, dev_t;
typedef long long __s64, s64, int64_t, loff_t, time64_t;
typedef unsigned long long __u64, u64, uint64_t, sector_t;
typedef __u16 __le16, __be16, __sum16;
typedef __u32 __le32, __be32, __wsum, __poll_t;
typedef __u64 __le64, __be64;
typedef unsigned long size_t, uintptr_t, __kernel_ulong_t;
typedef long ssize_t, __kernel_long_t;
typedef _Bool bool;
enum { false = 0, true = 1 };
typedef struct { int counter; } atomic_t;
typedef struct { s64 counter; } atomic64_t;
struct list_head { struct list_head *next, *prev; };
#define __aligned_u64 __u64 __attribute__((aligned(8)))
#define __packed __attribute__((packed))
#define __bitwise
#define __force
#define __user
#define NULL ((void *)0)
#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif
#ifndef __inline
#define __inline inline
#endif
