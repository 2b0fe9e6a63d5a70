//! Series of probes, sent for real between network namespaces.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]
#![expect(clippy::duplicate_mod, reason = "both sets of helpers bring their patience")]

mod agent;
mod ask;
#[path = "../beyond/attach.rs"]
#[expect(dead_code, reason = "these tests use a part")]
mod attach;
mod dns;
mod encrypted_dns;
mod engine;
mod forged;
mod glibc;
mod group;
mod host;
mod http;
mod http2;
mod icmp;
#[path = "../lab/mod.rs"]
mod lab;
mod memory;
mod path;
mod path_mtu;
mod stapled;
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "these tests use a part")]
mod support;
mod tcp;
mod throughput;
mod tls;
mod udp;
mod way;
