//! One module per hook; hook, record, decoder and observation share one name.

pub mod dns;
pub mod icmp_send;
pub mod inet_sk_error_report;
pub mod inet_sock_set_state;
pub mod kfree_skb;
pub mod library;
pub mod neighbour;
pub mod tag;
pub mod tcp_reset;
pub mod tcp_retransmit;
pub mod udp_fail_queue_rcv_skb;
