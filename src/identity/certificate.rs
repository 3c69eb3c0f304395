//! Owns the callers behind client certificates, by the names that certificates have.
//! Does not verify certificates (TLS did, before anything was said).
//! Invariant: a certificate that stands for two callers stands for none.

use std::collections::HashMap;
use std::sync::Arc;

use super::{CertificateHolder, Refused};
use crate::principal::{ClientCertificate, CredentialId, Principal, PrincipalKind};

/// The configured holders by name.
pub(super) struct Certificates(HashMap<String, CertificateHolder>);

impl Certificates {
    pub(super) fn new(holders: Vec<CertificateHolder>) -> Self {
        Self(holders.into_iter().map(|holder| (holder.name.clone(), holder)).collect())
    }

    /// Says whether somebody has a name of the certificate.
    pub(super) fn knows(&self, certificate: &ClientCertificate) -> bool {
        certificate.names.iter().any(|name| self.0.contains_key(name))
    }

    /// The caller behind a certificate.
    pub(super) fn verify(&self, certificate: &ClientCertificate, now: u64) -> Result<Principal, Refused> {
        let mut found: Option<&CertificateHolder> = None;
        for holder in certificate.names.iter().filter_map(|name| self.0.get(name)) {
            if found.is_some_and(|other| other.id != holder.id) {
                return Err(Refused::Invalid("client certificate stands for several callers"));
            }
            found = Some(holder);
        }
        let holder = found.ok_or(Refused::Missing)?;
        // The handshake may be long ago.
        if now >= certificate.expires_at {
            return Err(Refused::Expired);
        }
        let shared = |names: &[String]| names.iter().map(|name| Arc::from(name.as_str())).collect();
        let mut principal = Principal::new(
            PrincipalKind::Service,
            format!("cert:{}", holder.id),
            holder.tenant.clone(),
            shared(&holder.roles),
            shared(&holder.scopes),
            holder.plan.as_deref().map(Arc::from),
            Some(certificate.expires_at),
        );
        principal.credential = Some(CredentialId { id: None, sha256: certificate.sha256, audiences: Vec::new() });
        Ok(principal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::principal::TenantId;

    #[test]
    fn a_certificate_stands_for_the_one_caller_that_it_names() {
        let holder = |id: &str, name: &str| CertificateHolder {
            id: id.to_owned(),
            name: name.to_owned(),
            tenant: TenantId::new("acme").unwrap(),
            roles: vec!["operator".to_owned()],
            scopes: Vec::new(),
            plan: None,
        };
        let known = Certificates::new(vec![holder("a", "uri:spiffe://a"), holder("b", "dns:b.example")]);
        let certificate = |names: &[&str]| ClientCertificate {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            sha256: [7; 32],
            expires_at: 100,
        };
        let subject = |names: &[&str], now| known.verify(&certificate(names), now).map(|p| p.subject.to_string());
        assert_eq!(subject(&["subject:CN=x", "uri:spiffe://a"], 99), Ok("cert:a".to_owned()));
        assert_eq!(subject(&["dns:b.example"], 99), Ok("cert:b".to_owned()));
        assert_eq!(subject(&["dns:b.example"], 100), Err(Refused::Expired));
        assert_eq!(subject(&["uri:b.example", "dns:B.example", "dns:x.b.example"], 99), Err(Refused::Missing));
        let both = subject(&["dns:b.example", "uri:spiffe://a"], 99);
        assert_eq!(both, Err(Refused::Invalid("client certificate stands for several callers")));
    }
}
