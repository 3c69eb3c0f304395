//! Owns run ids: UUIDs that say which endpoint holds a run, and prove to whom it belongs.
//! Does not know whether a run exists.
//! Invariant: an id verifies only for the cluster and the upstream user that it was minted for.
//!
//! Layout, over the 122 free bits of a UUIDv8 (RFC 9562 §5.8): 16 bits endpoint tag, 58 random bits, 48 bits of
//! HMAC-SHA256 over (cluster, upstream user, tag and random bits). Any instance that shares the secret can read it.

use std::fmt;

use uuid::Uuid;

use super::seal::Keys;
use super::user_id::UpstreamUser;
use crate::secret::Secret;

const RANDOM_BITS: u32 = 58;
const MAC_BITS: u32 = 48;
const MAC_BYTES: usize = 6;

/// The stable name of an endpoint within its cluster.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointTag(pub u16);

/// Mints and reads run ids. Clones share the keys.
#[derive(Clone)]
pub struct RunIds(Keys);

// === impl RunIds ===

impl RunIds {
    /// Takes the server's secrets, newest first; the first signs, all verify. Without a secret no id verifies.
    pub fn new(secrets: &[Secret]) -> Self {
        Self(Keys::derive(secrets, "run-id"))
    }

    /// Makes the id of a new run on an endpoint.
    pub fn mint(&self, cluster: &str, user: &UpstreamUser, tag: EndpointTag) -> Uuid {
        // The low 62 bits of a UUIDv4 are random.
        let random = Uuid::new_v4().as_u128() & low(RANDOM_BITS);
        let body = (u128::from(tag.0) << RANDOM_BITS) | random;
        let mac = self.0.sign(&parts(cluster, user, &body.to_be_bytes())).unwrap_or_default();
        let mac = mac.iter().take(MAC_BYTES).fold(0, |bits: u128, byte| (bits << 8) | u128::from(*byte));
        Uuid::from_u128(spread((body << MAC_BITS) | mac))
    }

    /// The endpoint that holds the run, when the id was minted for this cluster and this user.
    pub fn read(&self, id: &Uuid, cluster: &str, user: &UpstreamUser) -> Option<EndpointTag> {
        let bits = gather(id)?;
        let body = bits >> MAC_BITS;
        let mac = (bits & low(MAC_BITS)).to_be_bytes();
        let mac = mac.get(mac.len() - MAC_BYTES..)?;
        self.0.verify(&parts(cluster, user, &body.to_be_bytes()), mac).then(|| tag_of_body(body))
    }
}

impl fmt::Debug for RunIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RunIds([redacted])")
    }
}

/// The endpoint that an id names, unproven: for ids whose owner is known from elsewhere.
pub fn tag_of(id: &Uuid) -> Option<EndpointTag> {
    gather(id).map(|bits| tag_of_body(bits >> MAC_BITS))
}

// === impl EndpointTag ===

impl fmt::Debug for EndpointTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}", self.0)
    }
}

impl fmt::Display for EndpointTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}", self.0)
    }
}

fn parts<'a>(cluster: &'a str, user: &'a UpstreamUser, body: &'a [u8]) -> [&'a [u8]; 3] {
    [cluster.as_bytes(), user.as_str().as_bytes(), body]
}

fn tag_of_body(body: u128) -> EndpointTag {
    EndpointTag(u16::try_from(body >> RANDOM_BITS).unwrap_or_default())
}

fn low(bits: u32) -> u128 {
    (1 << bits) - 1
}

/// Puts 122 bits around version (8) and variant (0b10).
fn spread(bits: u128) -> u128 {
    let (high, middle, rest) = (bits >> 74, (bits >> 62) & low(12), bits & low(62));
    (high << 80) | (8 << 76) | (middle << 64) | (2 << 62) | rest
}

/// Takes the 122 bits back; `None` for any other version or variant.
fn gather(id: &Uuid) -> Option<u128> {
    let all = id.as_u128();
    let ours = (all >> 76) & 0xf == 8 && (all >> 62) & 3 == 2;
    ours.then(|| ((all >> 80) << 74) | (((all >> 64) & low(12)) << 62) | (all & low(62)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::UserIdTemplate;
    use crate::principal::TenantId;
    use proptest::prelude::*;

    fn ids(secrets: &[&str]) -> RunIds {
        RunIds::new(&secrets.iter().map(|s| Secret::new(*s)).collect::<Vec<_>>())
    }

    fn user(tenant: &str, subject: &str) -> UpstreamUser {
        UserIdTemplate::default().render(&TenantId::new(tenant).unwrap(), subject).unwrap()
    }

    #[test]
    fn ids_are_uuids_of_version_8_and_differ() {
        let (ids, alice) = (ids(&["s"]), user("acme", "alice"));
        let id = ids.mint("main", &alice, EndpointTag(0xbeef));
        assert_eq!((id.get_version_num(), id.get_variant()), (8, uuid::Variant::RFC4122));
        assert!(id.to_string().starts_with("beef"));
        assert_ne!(id, ids.mint("main", &alice, EndpointTag(0xbeef)));
    }

    #[test]
    fn secrets_rotate() {
        let alice = user("acme", "alice");
        let id = ids(&["old"]).mint("main", &alice, EndpointTag(7));
        assert_eq!(ids(&["new", "old"]).read(&id, "main", &alice), Some(EndpointTag(7)));
        assert_eq!(ids(&["new"]).read(&id, "main", &alice), None);
        assert_eq!(ids(&[]).read(&id, "main", &alice), None);
    }

    #[test]
    fn foreign_uuids_name_no_endpoint() {
        for id in [Uuid::nil(), Uuid::max(), Uuid::new_v4()] {
            assert_eq!((tag_of(&id), ids(&["s"]).read(&id, "main", &user("a", "b"))), (None, None));
        }
    }

    proptest! {
        #[test]
        fn ids_verify_only_for_their_cluster_and_user(
            tag: u16,
            minted in ("[a-c]{1,2}", "[a-c]{1,2}", "[a-c~]{1,2}"),
            asked in ("[a-c]{1,2}", "[a-c]{1,2}", "[a-c~]{1,2}"),
        ) {
            let ids = ids(&["s"]);
            let id = ids.mint(&minted.0, &user(&minted.1, &minted.2), EndpointTag(tag));
            let read = ids.read(&id, &asked.0, &user(&asked.1, &asked.2));
            prop_assert_eq!(read, (minted == asked).then_some(EndpointTag(tag)));
            prop_assert_eq!(tag_of(&id), Some(EndpointTag(tag)));
            let parsed = Uuid::parse_str(&id.to_string()).unwrap();
            prop_assert_eq!(ids.read(&parsed, &minted.0, &user(&minted.1, &minted.2)), Some(EndpointTag(tag)));
        }

        #[test]
        fn changed_ids_do_not_verify(tag: u16, bit in 0u32..128) {
            let (ids, alice) = (ids(&["s"]), user("acme", "alice"));
            let id = ids.mint("main", &alice, EndpointTag(tag));
            let changed = Uuid::from_u128(id.as_u128() ^ (1 << bit));
            prop_assert_eq!(ids.read(&changed, "main", &alice), None);
        }
    }
}
