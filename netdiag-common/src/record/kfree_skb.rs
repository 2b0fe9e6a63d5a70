//! One packet dropped by the kernel: keys, counts and exemplars of tracepoint `skb:kfree_skb`.
