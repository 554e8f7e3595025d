//! Which addresses of libvirt are this host's.

use super::error::LibvirtError;

/// Refuses an address that may lead anywhere else: a machine's process, files and channel must be here.
pub fn check_local(uri: &str) -> Result<(), LibvirtError> {
    let (address, extras) =
        uri.split_once('?').map_or((uri, None), |(address, extras)| (address, Some(extras)));
    let local = ["qemu:///system", "qemu+unix:///system"].contains(&address);
    // All that libvirt knows for a socket of this host.
    let known = |extra: &str| extra.starts_with("socket=/") || extra.starts_with("mode=");
    if local && extras.is_none_or(|extras| extras.split('&').all(known)) {
        return Ok(());
    }
    Err(LibvirtError::NotLocal(uri.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_hosts_libvirt_is_taken() {
        for uri in ["qemu:///system", "qemu+unix:///system", "qemu+unix:///system?socket=/run/libvirt/sock"] {
            check_local(uri).unwrap();
        }
        for uri in [
            "qemu+ssh://root@192.0.2.1/system",
            "qemu+tcp://192.0.2.1/system",
            "qemu+tls://host/system",
            "qemu+unix://host/system",
            "qemu:///system?command=/bin/sh",
            "qemu+ext:///system?command=/bin/sh",
            "qemu:///session",
            "qemu:///embed?root=/tmp",
            "test:///default",
            "lxc:///",
            "",
        ] {
            let refused = check_local(uri).unwrap_err();
            assert!(matches!(&refused, LibvirtError::NotLocal(named) if named == uri), "{uri}");
            assert!(refused.fix().unwrap().contains("qemu:///system"));
        }
    }
}
