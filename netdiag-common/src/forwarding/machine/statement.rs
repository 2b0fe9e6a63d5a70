//! Expressions that choose, limit, translate, reject or hand the packet to others.

use super::{Result, Run};
use crate::forwarding::conntrack::Tuple;
use crate::forwarding::expression::{Expression, Verdict};
use crate::forwarding::hash;
use crate::forwarding::nat::Request;
use crate::forwarding::packet::{Protocol, TCP, flag};
use crate::forwarding::path::Reject;
use crate::forwarding::state::Route;

const ANSWERED: &str = "synproxy, which answers it";

impl<'a> Run<'a> {
    pub(super) fn statement(&mut self, expression: &'a Expression) -> Result<Verdict> {
        match expression {
            Expression::Limit { .. } | Expression::Quota { .. } | Expression::Connlimit { .. } => {
                Ok(self.stateful(expression, "this rule"))
            }
            Expression::Numgen { random, modulus, offset, to } => {
                let kind = if *random { "random" } else { "inc" };
                let value = self.draw(&format!("numgen {kind} mod {modulus}"), *modulus);
                Ok(self.store_number(*to, value.wrapping_add(*offset)))
            }
            Expression::Jhash { from, bytes, modulus, seed, offset, to } => {
                Ok(self.jhash(*from, *bytes, *modulus, *seed, *offset, *to))
            }
            Expression::Symhash { modulus, offset, to } => {
                let value = self.symmetric_hash(*modulus);
                Ok(self.store_number(*to, value.wrapping_add(*offset)))
            }
            Expression::Fib { result, flags, to } => self.fib(*result, *flags, *to),
            Expression::Rt { key, to } => Ok(self.rt(*key, *to)),
            Expression::Socket { key, to, .. } => self.load_socket(*key, *to),
            Expression::Unreadable { words, bytes, to } => {
                if !self.decide(&format!("there is {words}")) {
                    return Ok(Verdict::Break);
                }
                self.store_unknown(*to, *bytes as usize, words);
                Ok(Verdict::Continue)
            }
            Expression::Nat { kind, family, address, port, flags } => {
                // `nft_nat_inet_eval`: a rule for one family of an inet table.
                let of_packet = if self.packet.protocol == Protocol::Ipv4 { 2 } else { 10 };
                if *family != of_packet && *family != 1 {
                    return Ok(Verdict::Continue);
                }
                let request = Request::from_registers(self, *kind, *address, *port, *flags)?;
                self.translate(request)
            }
            Expression::Masquerade { port, flags } => self.masquerade(*port, *flags),
            Expression::Redirect { port, flags } => self.redirect(*port, *flags),
            Expression::Reject { kind, code } => {
                self.rejected = Some(self.answer(*kind, *code));
                Ok(Verdict::Drop)
            }
            Expression::Queue { queues, bypass } => self.queue(*queues, *bypass),
            Expression::Object { kind, name } => Ok(self.object(*kind, name)),
            Expression::FlowOffload { table } => self.offload(table),
            Expression::Synproxy => Ok(self.synproxy()),
            Expression::Tproxy { family, address, port } => self.proxy(*family, *address, *port),
            Expression::XtEntry { info } => Ok(self.xt_entry(info)),
            Expression::XtMatch { name, revision, info } => self.xt_match(name, *revision, info),
            Expression::XtTarget { name, revision, info } => self.xt_target(name, *revision, info),
            Expression::Unknown { name } => {
                if self.decide(&format!("expression {name}, which is not evaluated, lets the rule go on")) {
                    return Err(self.unknown(format!("expression {name} is not evaluated")));
                }
                Ok(Verdict::Break)
            }
            _ => Ok(Verdict::Continue),
        }
    }

    /// What decides by a state that cannot be read exactly: taken both ways.
    pub(super) fn stateful(&mut self, expression: &Expression, of: &str) -> Verdict {
        let within = match expression {
            Expression::Limit { words, negated } => {
                self.decide_afresh(&format!("within limit {words} of {of}")) != *negated
            }
            Expression::Quota { bytes, negated, .. } => {
                self.decide_afresh(&format!("within the quota of {bytes} bytes of {of}")) != *negated
            }
            Expression::Connlimit { count, negated } => {
                self.decide_afresh(&format!("at most {count} connections of {of}")) != *negated
            }
            _ => true,
        };
        if within { Verdict::Continue } else { Verdict::Break }
    }

    /// A named object (`NFT_OBJECT_*`).
    pub(super) fn object(&mut self, kind: u32, name: &str) -> Verdict {
        let within = match kind {
            // Quota, limit, connection limit.
            2 | 4 | 5 => self.decide_afresh(&format!("within the limit of object {name}")),
            // Synproxy.
            10 => return self.synproxy(),
            _ => true,
        };
        if within { Verdict::Continue } else { Verdict::Break }
    }

    pub(in crate::forwarding) fn store_number(&mut self, to: u32, value: u32) -> Verdict {
        self.registers.store(to, &value.to_ne_bytes());
        Verdict::Continue
    }

    fn jhash(&mut self, from: u32, bytes: u32, modulus: u32, seed: Option<u32>, offset: u32, to: u32) -> Verdict {
        let known = self.registers.load(from, bytes as usize).known().ok().zip(seed);
        let value = match known {
            Some((key, seed)) => hash::scale(hash::jhash(key, seed), modulus),
            None => self.draw(&format!("jhash mod {modulus}"), modulus),
        };
        self.store_number(to, value.wrapping_add(offset))
    }

    /// `nft_symhash_eval`: of the same addresses and ports, each rule gets the same number.
    fn symmetric_hash(&mut self, modulus: u32) -> u32 {
        let Some(tuple) = Tuple::of(&self.packet) else {
            return self.draw(&format!("symhash mod {modulus}"), modulus);
        };
        let before = self.hashed.iter().find(|(of, by, _)| *of == tuple && *by == modulus);
        if let Some((_, _, value)) = before {
            return *value;
        }
        let value = self.draw(&format!("symhash mod {modulus}"), modulus);
        self.hashed.push((tuple, modulus, value));
        value
    }

    /// `nft_rt_get_eval`
    fn rt(&mut self, key: u32, to: u32) -> Verdict {
        let Some(route) = &self.route else { return Verdict::Break };
        let ipv4 = self.packet.protocol == Protocol::Ipv4;
        match key {
            // Next hop of IPv4, next hop of IPv6.
            1 | 2 if ipv4 == (key == 1) => {
                let gateway = match route {
                    // Of IPv4 by a router of IPv6, `rt_nexthop` knows the destination only.
                    Route::Forward { gateway: Some(gateway), .. } if gateway.is_ipv4() == ipv4 => *gateway,
                    _ => self.packet.destination(),
                };
                match gateway {
                    std::net::IpAddr::V4(address) => self.registers.store(to, &address.octets()),
                    std::net::IpAddr::V6(address) => self.registers.store(to, &address.octets()),
                }
                Verdict::Continue
            }
            1 | 2 => Verdict::Break,
            3 => {
                self.store_unknown(to, 2, "the largest segment that the route's MTU leaves room for");
                Verdict::Continue
            }
            key => {
                let (words, bytes) = match key {
                    0 => ("the realm of the route".to_owned(), 4),
                    4 => ("whether IPsec takes the packet".to_owned(), 1),
                    key => (format!("rt key {key}"), 4),
                };
                self.store_unknown(to, bytes, &words);
                Verdict::Continue
            }
        }
    }

    /// `enum nft_reject_types` and `enum nft_reject_inet_code`.
    fn answer(&self, kind: u32, code: u8) -> Reject {
        let ipv4 = self.packet.protocol == Protocol::Ipv4;
        // Destination unreachable.
        let kind_of_icmp = if ipv4 { 3 } else { 1 };
        let code = match (kind, code) {
            (1, _) => return Reject::TcpReset,
            (0, code) => code,
            // No route, port unreachable, host unreachable, administratively prohibited.
            (_, 0) => 0,
            (_, 1) => {
                if ipv4 {
                    3
                } else {
                    4
                }
            }
            (_, 2) => {
                if ipv4 {
                    1
                } else {
                    3
                }
            }
            (_, _) => {
                if ipv4 {
                    13
                } else {
                    1
                }
            }
        };
        Reject::Unreachable { kind: kind_of_icmp, code }
    }

    /// `nft_synproxy_do_eval`, which answers whatever has SYN.
    fn synproxy(&mut self) -> Verdict {
        match self.tcp_flags() {
            None => Verdict::Break,
            Some(flags) if flags & flag::SYN != 0 => self.steal(ANSWERED),
            Some(flags) if flags & flag::ACK != 0 => self.cookie(),
            Some(_) => Verdict::Continue,
        }
    }

    /// `synproxy_tg4`, `synproxy_tg6`, which leave combinations that begin no connection to the next rule.
    pub(in crate::forwarding) fn synproxy_target(&mut self) -> Verdict {
        let flags = self.tcp_flags().unwrap_or(0);
        match flags & (flag::FIN | flag::SYN | flag::RST | flag::ACK) {
            flag::SYN => self.steal(ANSWERED),
            flag::ACK => self.cookie(),
            _ => Verdict::Continue,
        }
    }

    /// `synproxy_recv_client_ack`: the cookie is made with a secret of the kernel.
    fn cookie(&mut self) -> Verdict {
        if self.decide("the acknowledgement answers a cookie of synproxy") {
            return self.steal("synproxy, which connects to the server");
        }
        Verdict::Drop
    }

    fn steal(&mut self, who: &'static str) -> Verdict {
        self.stolen_by = Some(who);
        Verdict::Stolen
    }

    fn tcp_flags(&self) -> Option<u8> {
        let transport = self.packet.transport().filter(|transport| transport.protocol == TCP)?;
        self.packet.bytes.get(transport.offset + 13).copied()
    }
}
