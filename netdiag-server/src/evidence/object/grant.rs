//! ReferenceGrants (gateway.networking.k8s.io/v1, v1beta1): which objects of other namespaces may refer to those of their own.

use serde::Deserialize;

use super::{Meta, null_default};

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct ReferenceGrant {
    pub metadata: Meta,
    #[serde(default)]
    pub spec: ReferenceGrantSpec,
}

/// Any of `from` may refer to any of `to`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct ReferenceGrantSpec {
    #[serde(deserialize_with = "null_default")]
    pub from: Vec<GrantFrom>,
    #[serde(deserialize_with = "null_default")]
    pub to: Vec<GrantTo>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct GrantFrom {
    pub group: String,
    pub kind: String,
    pub namespace: String,
}

/// An object of the grant's own namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct GrantTo {
    /// Empty for the core API.
    pub group: String,
    pub kind: String,
    /// All of the kind unless named.
    pub name: Option<String>,
}

impl ReferenceGrant {
    /// Whether it lets objects of `from` refer to this object, which must be of its own namespace.
    pub fn allows(&self, from: &GrantFrom, group: &str, kind: &str, name: &str) -> bool {
        let is_to = |to: &GrantTo| {
            to.group == group && to.kind == kind && to.name.as_deref().is_none_or(|granted| granted == name)
        };
        self.spec.from.contains(from) && self.spec.to.iter().any(is_to)
    }
}
