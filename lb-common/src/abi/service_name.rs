use core::fmt::{self, Display};

use super::ProtocolNumber;

/// Longest name of a namespace, a Service or a port (RFC 1123 label), in bytes.
pub const MAX_LABEL: usize = 63;

/// Value of `SERVICE_NAMES*`: whose service an index is. Programs never read it; the command line does, and an agent
/// that starts again, to find the index that each service port had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ServiceName {
    /// Namespace, NUL-padded.
    pub namespace: [u8; 64],
    /// Name of the Service, NUL-padded.
    pub name: [u8; 64],
    /// Name of the port, NUL-padded; empty where it has none.
    pub port_name: [u8; 63],
    /// IANA protocol number.
    pub protocol: u8,
}

impl ServiceName {
    /// A name from its parts; `None` where one is longer than [`MAX_LABEL`].
    pub fn new(namespace: &str, name: &str, port_name: &str, protocol: u8) -> Option<Self> {
        Some(Self { namespace: padded(namespace)?, name: padded(name)?, port_name: padded(port_name)?, protocol })
    }

    /// The namespace, name and port name, for people: what is not UTF-8 is empty.
    pub fn parts(&self) -> (&str, &str, &str) {
        (text(&self.namespace), text(&self.name), text(&self.port_name))
    }
}

/// `namespace/name:port/TCP`.
impl Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (namespace, name, port) = self.parts();
        let separator = if port.is_empty() { "" } else { ":" };
        write!(f, "{namespace}/{name}{separator}{port}/{}", ProtocolNumber(self.protocol.into()))
    }
}

fn padded<const N: usize>(label: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if label.len() > MAX_LABEL {
        return None;
    }
    bytes.get_mut(..label.len())?.copy_from_slice(label.as_bytes());
    Some(bytes)
}

fn text(bytes: &[u8]) -> &str {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes.get(..end).and_then(|label| core::str::from_utf8(label).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_legal_length_survive() {
        let longest = "n".repeat(MAX_LABEL);
        for (namespace, name, port) in [("a", "b", ""), (longest.as_str(), longest.as_str(), longest.as_str())] {
            let packed = ServiceName::new(namespace, name, port, 6).expect("legal");
            assert_eq!(packed.parts(), (namespace, name, port));
        }
        let shown = |port, protocol| ServiceName::new("shop", "web", port, protocol).expect("legal").to_string();
        assert_eq!(
            [shown("http", 6), shown("", 17), shown("", 132)],
            ["shop/web:http/TCP", "shop/web/UDP", "shop/web/132"]
        );
        assert_eq!(ServiceName::new(&"n".repeat(64), "b", "", 6), None);
    }
}
