//! What virtual machines are made of, and how it leaves the store.

use std::{fs, path::Path};

use images::{CollectedMachines, KernelFrom, Silent};

use crate::{Scratch, store::reference};

/// A kernel that has all drivers built in.
fn kernel(folder: &Path, release: &str) -> KernelFrom {
    let modules = folder.join(release);
    fs::create_dir_all(modules.join("kernel")).unwrap();
    let drivers = ["virtio_pci", "virtio_console", "virtio_blk", "erofs", "overlay"];
    let built_in = drivers.map(|driver| format!("kernel/drivers/{driver}.ko\n")).concat();
    fs::write(modules.join("modules.builtin"), built_in).unwrap();
    let kernel = folder.join(format!("vmlinuz-{release}"));
    fs::write(&kernel, format!("the kernel {release}")).unwrap();
    KernelFrom::Files { kernel, modules }
}

fn releases(collected: &CollectedMachines) -> Vec<&str> {
    collected.kernels.iter().map(|kernel| kernel.release.as_str()).collect()
}

#[test]
fn gc_removes_forms_and_kernels_that_no_machine_is_made_of_any_more_and_keeps_what_is_in_use() {
    let scratch = Scratch::new();
    let (store, kernels) = (scratch.store(), tempfile::tempdir().unwrap());
    let [old, new] = ["6.1", "6.2"].map(|release| kernel(kernels.path(), release));
    assert!(store.gc_machines(&new, false).unwrap().kernels.is_empty(), "there is nothing yet");
    let image = scratch.build();
    let [before, after] = [&old, &new].map(|kernel| store.machine_form(&image, kernel, &mut Silent).unwrap());
    fs::write(before.templates.join("memory"), vec![7; 100_000]).unwrap();
    fs::write(after.templates.join("memory"), vec![7; 100_000]).unwrap();

    let used = store.gc_machines(&new, false).unwrap();
    assert_eq!((used.forms.len(), used.kernels.len()), (0, 0), "somebody holds the image");
    assert_eq!(used.in_use, std::slice::from_ref(&image.name));
    drop(image);

    let gone = KernelFrom::Files { kernel: "/no/such/kernel".into(), modules: "/no/such/modules".into() };
    store.gc_machines(&gone, false).unwrap_err();
    assert!(before.disk.exists() && after.disk.exists(), "nobody knows which is wanted");

    let said = store.gc_machines(&new, true).unwrap();
    let [form] = &said.forms[..] else { panic!("{said:?}") };
    assert_eq!((form.digest, form.size >= 100_000), (before.digest, true));
    assert_eq!((releases(&said), before.disk.exists(), before.kernel.exists()), (vec!["6.1"], true, true));

    let collected = store.gc_machines(&new, false).unwrap();
    assert_eq!((collected.forms.len(), releases(&collected)), (1, vec!["6.1"]));
    assert_eq!(scratch.unfinished(), 0, "their bytes are gone too");
    assert!(!before.disk.parent().unwrap().exists() && !before.kernel.exists());
    assert!(after.disk.exists() && after.kernel.exists() && after.templates.join("memory").exists());
    let again = store.gc_machines(&new, false).unwrap();
    assert_eq!((again.forms.len(), again.kernels.len()), (0, 0));

    // Whoever goes back gets all of it again.
    let image = store.resolve(&reference("own")).unwrap();
    assert!(store.machine_form(&image, &old, &mut Silent).unwrap().disk.exists());
}
