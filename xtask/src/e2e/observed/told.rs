//! The row that each event must leave.

use anyhow::Result;
use serde_json::Value;

use super::events::{DNS, Events, LEDGER, OBSERVED};
use super::look::Said::{AtLeast, Count, Text};
use super::look::{Expected, Observer};

impl Events {
    /// What is missing or wrong in the looks at all subjects.
    pub(super) fn missed(&self, observer: &Observer) -> Result<Vec<String>> {
        let minute = ["--window", "1m"];
        let look = |arguments: &[&str]| observer.look(&[arguments, &minute].concat());
        // The filters select what is meant: by Service, by pod, by node.
        let overview = look(&["--service", "pay/observed"])?;
        let mut wrong = self.told_of_the_service(&overview);
        for (section, subject) in [("tcp", "tcp"), ("dns", "dns"), ("dns_names", "dns"), ("flows", "flows")] {
            let look = look(&[subject])?;
            wrong.extend(told_of_traffic().iter().filter(|e| e.section == section).flat_map(|e| e.missed(&look)));
        }
        wrong.extend(self.told_of_devices(&look(&["devices", "--pod", "shop/client"])?, &look(&["drops"])?));
        let sockets = look(&["sockets", "--pod", "pay/ledger-1"])?;
        let counters = look(&["counters", "--pod", "pay/ledger-1", "--reason", "ListenOverflows"])?;
        wrong.extend(told_of_the_listener().iter().filter(|e| e.section == "sockets").flat_map(|e| e.missed(&sockets)));
        wrong.extend(
            told_of_the_listener().iter().filter(|e| e.section == "counters").flat_map(|e| e.missed(&counters)),
        );
        let neighbours = look(&["neighbours", "--node", "n1"])?;
        let failed = Expected {
            event: "a neighbour that is not there",
            section: "neighbours",
            key: &[("/neighbour/address", &self.stray)],
            says: &[("/node", Text("n1")), ("/name", Text("host")), ("/device", Text("eth0"))],
        };
        wrong.extend(failed.missed(&neighbours));
        wrong.extend(unaccounted(&overview));
        Ok(wrong)
    }

    fn told_of_the_service(&self, look: &Value) -> Vec<String> {
        let at = |port: u16| format!("{}:{port}", self.server_address);
        let asked = |port: u16| format!("{OBSERVED}:{port}");
        let (dropped, closed, rejected, closed_udp, full) = (at(7001), at(7002), at(7003), at(7004), at(7005));
        let (asked_closed, asked_closed_udp) = (asked(7002), asked(7004));
        let client = ("/from/name", Text("pod shop/client"));
        let host = [("/node", Text("n1")), ("/name", Text("host"))];
        let server = [("/node", Text("n2")), ("/name", Text("pay/ledger-1"))];
        let [node1, on_host] = host;
        let [node2, in_server] = server;
        let expected = [
            Expected {
                event: "packets dropped by a rule",
                section: "drops",
                key: &[("/to/address", &dropped)],
                says: &[
                    node1,
                    on_host,
                    client,
                    ("/reason", Text("NETFILTER_DROP")),
                    ("/hook", Text("forward")),
                    ("/to/name", Text("pod pay/ledger-1")),
                    ("/asked/name", Text("service pay/observed")),
                    ("/packets", Count(2)),
                    ("/answered", Text("")),
                ],
            },
            Expected {
                event: "a packet rejected by a rule",
                section: "drops",
                key: &[("/to/address", &rejected)],
                says: &[
                    node1,
                    on_host,
                    ("/asked/name", Text("service pay/observed")),
                    ("/answered", Text("icmp sent: prohibited by a filter")),
                ],
            },
            Expected {
                event: "the rejection of a rule",
                section: "rejects",
                key: &[("/to/address", &rejected)],
                says: &[node1, on_host, client, ("/kind", Text("icmp_sent"))],
            },
            Expected {
                event: "packets to a closed port",
                section: "drops",
                key: &[("/to/address", &closed)],
                says: &[node2, in_server, client, ("/reason", Text("NO_SOCKET")), ("/packets", Count(6))],
            },
            Expected {
                event: "resets of a closed port",
                section: "rejects",
                key: &[("/to/address", &closed)],
                says: &[node2, in_server, client, ("/kind", Text("reset_sent")), ("/packets", Count(6))],
            },
            Expected {
                event: "resets received by the client",
                section: "rejects",
                key: &[("/to/address", &asked_closed)],
                says: &[
                    ("/node", Text("n1")),
                    ("/name", Text("shop/client")),
                    ("/detail", Text("in SYN_SENT")),
                    ("/packets", Count(6)),
                ],
            },
            Expected {
                event: "datagrams to a closed port",
                section: "rejects",
                key: &[("/to/address", &closed_udp)],
                says: &[node2, in_server, client, ("/detail", Text("port unreachable")), ("/packets", AtLeast(2))],
            },
            Expected {
                event: "the client's socket told so",
                section: "rejects",
                key: &[("/to/address", &asked_closed_udp)],
                says: &[("/name", Text("shop/client")), ("/detail", Text("connection refused"))],
            },
            Expected {
                event: "datagrams to a full socket",
                section: "drops",
                key: &[("/to/address", &full)],
                says: &[
                    node2,
                    in_server,
                    ("/reason", Text("SOCKET_RCVBUFF")),
                    ("/packets", Count(200 - self.datagrams_kept)),
                ],
            },
            Expected {
                event: "a full socket",
                section: "udp",
                key: &[("/name", "pay/ledger-1")],
                says: &[
                    node2,
                    ("/port", Count(7005)),
                    ("/reason", Text("receive buffer full")),
                    ("/packets", Count(200 - self.datagrams_kept)),
                ],
            },
        ];
        expected.iter().flat_map(|expected| expected.missed(look)).collect()
    }

    fn told_of_devices(&self, look: &Value, drops: &Value) -> Vec<String> {
        let place = [("/node", Text("n1")), ("/name", Text("shop/client"))];
        let [node, client] = place;
        let expected = [
            Expected {
                event: "a queue that drops",
                section: "devices",
                key: &[("/device", "obs0")],
                says: &[
                    node,
                    client,
                    ("/grown/0/name", Text("qdisc tbf drops")),
                    ("/grown/0/by", Count(self.queue_drops)),
                ],
            },
            Expected {
                event: "a device without carrier",
                section: "devices",
                key: &[("/device", "obs2")],
                says: &[("/name", Text("shop/client")), ("/state", Text("no carrier"))],
            },
        ];
        let dropped = Expected {
            event: "packets dropped by a queue",
            section: "drops",
            key: &[("/reason", "QDISC_DROP"), ("/to/address", "198.51.100.2:9")],
            says: &[("/node", Text("n1")), ("/name", Text("shop/client")), ("/packets", Count(self.queue_drops))],
        };
        expected.iter().flat_map(|expected| expected.missed(look)).chain(dropped.missed(drops)).collect()
    }
}

fn told_of_traffic() -> [Expected<'static>; 8] {
    [
        Expected {
            event: "refused connects",
            section: "tcp",
            key: &[("/service/address", "10.96.0.82:7002")],
            says: &[
                ("/node", Text("n1")),
                ("/name", Text("shop/client")),
                ("/service/name", Text("service pay/observed")),
                ("/refused", Count(6)),
                ("/connects", Count(6)),
            ],
        },
        Expected {
            event: "a connect without answer",
            section: "tcp",
            key: &[("/service/address", "10.96.0.82:7001")],
            says: &[
                ("/name", Text("shop/client")),
                ("/abandoned", Count(1)),
                ("/syn_retransmits", Count(1)),
                ("/established", Count(0)),
            ],
        },
        Expected {
            event: "connects that work",
            section: "tcp",
            key: &[("/service/address", LEDGER), ("/side", "client")],
            says: &[
                ("/name", Text("shop/client")),
                ("/service/name", Text("service pay/ledger")),
                ("/established", Count(5)),
                ("/refused", Count(0)),
            ],
        },
        Expected {
            event: "queries without answer",
            section: "dns",
            key: &[("/server/address", "10.96.0.82:53")],
            says: &[
                ("/name", Text("shop/client")),
                ("/server/name", Text("service pay/observed")),
                ("/unanswered", Count(2)),
                ("/answered", Count(0)),
            ],
        },
        Expected {
            event: "queries of the pod",
            section: "dns",
            key: &[("/server/address", DNS), ("/name", "shop/client")],
            says: &[
                ("/node", Text("n1")),
                ("/server/name", Text("service kube-system/kube-dns")),
                ("/unanswered", Count(0)),
            ],
        },
        Expected {
            event: "a name that is not there",
            section: "dns_names",
            key: &[("/asked", "observed.shop.svc.cluster.local")],
            says: &[
                ("/node", Text("n1")),
                ("/name", Text("shop/client")),
                ("/queries", Count(3)),
                ("/nxdomain", Count(3)),
            ],
        },
        Expected {
            event: "a name that nobody resolves",
            section: "dns_names",
            key: &[("/asked", "silent.example")],
            says: &[("/name", Text("shop/client")), ("/queries", Count(2)), ("/unanswered", Count(2))],
        },
        Expected {
            event: "flows of a Service to its endpoint",
            section: "flows",
            key: &[("/to/address", LEDGER)],
            says: &[
                ("/node", Text("n1")),
                ("/to/name", Text("service pay/ledger")),
                ("/endpoint/name", Text("pod pay/ledger-1")),
                ("/rules", Text("lead there")),
                ("/flows", AtLeast(5)),
            ],
        },
    ]
}

fn told_of_the_listener() -> [Expected<'static>; 2] {
    [
        Expected {
            event: "a full listener",
            section: "sockets",
            key: &[("/local", "0.0.0.0:7006")],
            says: &[
                ("/node", Text("n2")),
                ("/name", Text("pay/ledger-1")),
                ("/state", Text("listen")),
                ("/receive_queue", Count(2)),
                ("/accept_limit", Count(1)),
                ("/drops", AtLeast(2)),
            ],
        },
        Expected {
            event: "the counter of full listeners",
            section: "counters",
            key: &[("/counter", "TcpExt.ListenOverflows")],
            says: &[("/node", Text("n2")), ("/name", Text("pay/ledger-1")), ("/grown_by", AtLeast(2))],
        },
    ]
}

/// Every term of every node's counts is accounted for.
fn unaccounted(look: &Value) -> Vec<String> {
    let accounts = look["accounts"].as_array().cloned().unwrap_or_default();
    let wrong = accounts.iter().filter(|account| account["unaccounted"] != 0).map(ToString::to_string);
    let too_few = (accounts.len() != 10).then(|| format!("{} accounts instead of 5 of 2 nodes", accounts.len()));
    wrong.chain(too_few).collect()
}
