//! Routing rules as ip-rule(8) writes them.

use std::fmt::{Display, Formatter, Result};

use super::table::{DEFAULT_TABLE, LOCAL_TABLE, MAIN_TABLE, Ports, RoutingRule, action};

impl Display for RoutingRule {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        if self.inverted {
            write!(f, "not ")?;
        }
        match self.source {
            Some(source) => write!(f, "from {source}")?,
            None => write!(f, "from all")?,
        }
        if let Some(destination) = self.destination {
            write!(f, " to {destination}")?;
        }
        if self.service != 0 {
            write!(f, " tos {:#x}", self.service)?;
        }
        if let Some((value, mask)) = self.differentiated {
            write!(f, " dscp {value:#x}")?;
            if mask != 0x3f {
                write!(f, "/{mask:#x}")?;
            }
        }
        if self.mark != 0 || self.mask != 0 {
            write!(f, " fwmark {:#x}", self.mark)?;
            if self.mask != u32::MAX {
                write!(f, "/{:#x}", self.mask)?;
            }
        }
        for (word, interface) in [("iif", &self.input), ("oif", &self.output)] {
            if let Some(interface) = interface {
                write!(f, " {word} {interface}")?;
            }
        }
        if self.vrf {
            write!(f, " lookup [l3mdev-table]")?;
        }
        if let Some((first, last)) = self.users {
            write!(f, " uidrange {first}-{last}")?;
        }
        match self.protocol {
            0 => {}
            1 => write!(f, " ipproto icmp")?,
            6 => write!(f, " ipproto tcp")?,
            17 => write!(f, " ipproto udp")?,
            58 => write!(f, " ipproto ipv6-icmp")?,
            other => write!(f, " ipproto {other}")?,
        }
        for (word, ports) in [("sport", self.source_ports), ("dport", self.destination_ports)] {
            if let Some(ports) = ports {
                write!(f, " {word} {ports}")?;
            }
        }
        for other in &self.others {
            write!(f, " {other}")?;
        }
        self.write_action(f)
    }
}

impl RoutingRule {
    fn write_action(&self, f: &mut Formatter<'_>) -> Result {
        match (self.action, self.goto) {
            (action::TO_TABLE, _) if self.vrf => {}
            (action::TO_TABLE, _) => match self.table {
                LOCAL_TABLE => write!(f, " lookup local")?,
                MAIN_TABLE => write!(f, " lookup main")?,
                DEFAULT_TABLE => write!(f, " lookup default")?,
                other => write!(f, " lookup {other}")?,
            },
            (action::GOTO, Some(priority)) => write!(f, " goto {priority}")?,
            (action::GOTO, None) => write!(f, " goto none")?,
            (action::NOP, _) => write!(f, " nop")?,
            (action::BLACKHOLE, _) => write!(f, " blackhole")?,
            (action::UNREACHABLE, _) => write!(f, " unreachable")?,
            (action::PROHIBIT, _) => write!(f, " prohibit")?,
            (other, _) => write!(f, " action {other}")?,
        }
        if let Some(length) = self.suppressed_length {
            write!(f, " suppress_prefixlength {length}")?;
        }
        if let Some(group) = self.suppressed_group {
            write!(f, " suppress_ifgroup {group}")?;
        }
        Ok(())
    }
}

impl Ports {
    /// `fib_rule_port_match`: nothing without ports has one.
    pub(super) fn hold(self, port: u16) -> bool {
        if port == 0 {
            return false;
        }
        if self.mask != u16::MAX {
            return (self.first ^ port) & self.mask == 0;
        }
        (self.first..=self.last).contains(&port)
    }
}

impl Display for Ports {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match *self {
            Self { first, mask, .. } if mask != u16::MAX => write!(f, "{first:#x}/{mask:#x}"),
            Self { first, last, .. } if first == last => write!(f, "{first}"),
            Self { first, last, .. } => write!(f, "{first}-{last}"),
        }
    }
}
