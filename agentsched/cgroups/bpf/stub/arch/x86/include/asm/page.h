/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#pragma once
#define PAGE_SHIFT 12
#define PAGE_SIZE (1UL << PAGE_SHIFT)
#define THREAD_SIZE (4 * PAGE_SIZE)
