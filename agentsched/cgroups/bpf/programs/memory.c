// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * Memory of leaves: page faults from user mode, and the time for which their threads reclaim memory
 * themselves, at a limit of their cgroup (memcg) or for want of it in the whole machine (direct).
 *
 * Measured: mm_vmscan_*_reclaim_begin to _end in one thread. Faults that the kernel takes for a process
 * (copying to user memory) are not counted. page_fault_user is there on x86 and some others; where it is
 * not, this program is not loaded.
 * Overhead: one look-up at each page fault of the machine, an update at those of leaves.
 */
struct memory_t {
    u64 faults;
    u64 reclaims;
    u64 reclaim_ns;
};

BPF_HASH(memory, u64, struct memory_t, MOST_LEAVES);
BPF_HASH(reclaiming, u32, u64, MOST_THREADS);

static inline struct memory_t *memory_of(u64 id)
{
    struct memory_t none = {};
    return memory.lookup_or_try_init(&id, &none);
}

TRACEPOINT_PROBE(exceptions, page_fault_user)
{
    u64 leaf = current_leaf();
    struct memory_t *all = leaf ? memory_of(leaf) : 0;
    if (all)
        __sync_fetch_and_add(&all->faults, 1);
    return 0;
}

static inline int reclaim_begins(void)
{
    u32 thread = bpf_get_current_pid_tgid();
    u64 now = bpf_ktime_get_ns();
    if (current_leaf())
        reclaiming.update(&thread, &now);
    return 0;
}

static inline int reclaim_ends(void)
{
    u32 thread = bpf_get_current_pid_tgid();
    u64 *began = reclaiming.lookup(&thread), leaf = current_leaf();
    struct memory_t *all;
    if (!began)
        return 0;
    all = leaf ? memory_of(leaf) : 0;
    if (all) {
        __sync_fetch_and_add(&all->reclaims, 1);
        __sync_fetch_and_add(&all->reclaim_ns, bpf_ktime_get_ns() - *began);
    }
    reclaiming.delete(&thread);
    return 0;
}

TRACEPOINT_PROBE(vmscan, mm_vmscan_memcg_reclaim_begin) { return reclaim_begins(); }
TRACEPOINT_PROBE(vmscan, mm_vmscan_memcg_reclaim_end) { return reclaim_ends(); }
TRACEPOINT_PROBE(vmscan, mm_vmscan_direct_reclaim_begin) { return reclaim_begins(); }
TRACEPOINT_PROBE(vmscan, mm_vmscan_direct_reclaim_end) { return reclaim_ends(); }
