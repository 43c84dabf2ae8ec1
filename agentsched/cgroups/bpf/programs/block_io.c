// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * Block I/O of leaves: requests, bytes and time in the device, reads and writes apart.
 *
 * Measured: block_rq_issue (handed to the driver) to block_rq_complete of the same device and sector. It counts
 * to the leaf of whoever issues it: for reads that is who waits for them; what was written into the page
 * cache is issued later by a kernel thread, and counts to nobody. Merged requests count once, and a
 * request that completes in parts counts at its first part.
 * Overhead: one look-up a request of the machine, an insert and a delete for those of leaves.
 */
struct request_t {
    u64 sector;
    u64 dev;
};

struct issued_t {
    u64 leaf;
    u64 time_ns;
    u32 bytes;
    u32 writes;
};

struct blocks_t {
    u64 requests[2];
    u64 bytes[2];
    u64 ns[2];
};

BPF_HASH(issued, struct request_t, struct issued_t, 16384);
BPF_HASH(blocks, u64, struct blocks_t, MOST_LEAVES);

TRACEPOINT_PROBE(block, block_rq_issue)
{
    u64 leaf = current_leaf();
    struct request_t request = {};
    struct issued_t now = {};
    if (!leaf)
        return 0;
    request.sector = args->sector;
    request.dev = args->dev;
    now.leaf = leaf;
    now.time_ns = bpf_ktime_get_ns();
    now.bytes = args->bytes;
    now.writes = args->rwbs[0] == 'W' || args->rwbs[1] == 'W'; /* F before it is a flush */
    issued.update(&request, &now);
    return 0;
}

TRACEPOINT_PROBE(block, block_rq_complete)
{
    struct request_t request = {};
    struct issued_t *was;
    struct blocks_t none = {}, *all;
    u64 id;
    u32 way;
    request.sector = args->sector;
    request.dev = args->dev;
    was = issued.lookup(&request);
    if (!was)
        return 0;
    id = was->leaf;
    all = blocks.lookup_or_try_init(&id, &none);
    if (all) {
        way = was->writes & 1;
        __sync_fetch_and_add(&all->requests[way], 1);
        __sync_fetch_and_add(&all->bytes[way], was->bytes);
        __sync_fetch_and_add(&all->ns[way], bpf_ktime_get_ns() - was->time_ns);
    }
    issued.delete(&request);
    return 0;
}
