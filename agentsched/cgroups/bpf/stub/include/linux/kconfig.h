/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#pragma once
#define CONFIG_64BIT 1
#define CONFIG_BPF 1
#define CONFIG_BPF_SYSCALL 1
#define CONFIG_CGROUPS 1
#define IS_ENABLED(option) 0
