//! A machine as libvirt describes it.
//!
//! Devices are counted: the image's files as a read-only disk, a small disk of which the snapshot is a part, a serial port
//! to the agent, random numbers. No network, no display, no USB, no shared folder, no console. Every format is named, so that
//! nothing is guessed from bytes that a guest wrote. What it may use of the host is in mayfly's own cgroup.

use std::path::{Path, PathBuf};

use libvirt_protocol::{LABEL, PREFIX};

use crate::{
    id::{GenerationId, InstanceId},
    vm::{Accelerator, machine::Machine},
};

/// Where a machine's files are, and whose they are.
pub(super) struct Place<'p> {
    pub(super) name: &'p str,
    pub(super) owner: Owner<'p>,
    pub(super) files: &'p Files,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// Whose a machine is.
pub(super) struct Owner<'o> {
    pub(super) node: &'o Path,
    pub(super) instance: InstanceId,
    pub(super) boot: &'o str,
}

impl Owner<'_> {
    /// The element by which a machine in its life says so.
    pub(super) fn label(&self, life: GenerationId) -> String {
        format!("<sandbox {} generation='{life}'/>", self.attributes())
    }

    fn attributes(&self) -> String {
        let (node, boot) = (escaped(&self.node.to_string_lossy()), escaped(self.boot));
        format!("instance='{}' node='{node}' boot='{boot}'", self.instance)
    }
}

/// A machine's files, by what they are to it.
#[derive(Debug, Clone)]
pub(super) struct Files {
    pub(super) kernel: PathBuf,
    pub(super) initramfs: PathBuf,
    pub(super) image: PathBuf,
    /// The disk that a snapshot of the whole machine is kept in, while a process has it.
    pub(super) state: PathBuf,
    /// The same with the snapshot and nothing after it. No process of a machine's can open it.
    pub(super) clean: PathBuf,
    pub(super) socket: PathBuf,
}

impl Files {
    pub(super) fn below(folder: &Path) -> Self {
        let file = |name| folder.join(name);
        Self {
            kernel: file("vmlinuz"),
            initramfs: file("initramfs"),
            image: file("image.erofs"),
            state: file("state.qcow2"),
            clean: file("clean.qcow2"),
            socket: file("agent"),
        }
    }
}

/// The document by which libvirt makes a machine.
pub(super) fn domain(machine: &Machine, place: &Place<'_>) -> String {
    let (kind, mode) = match machine.accelerator {
        Accelerator::Kvm => ("kvm", "host-model"),
        Accelerator::Tcg => ("qemu", "maximum"),
    };
    let lacking = machine.lacking().iter().map(|name| format!("<feature policy='disable' name='{name}'/>"));
    let lacking: String = lacking.collect();
    let Files { kernel, initramfs, image, state, socket, .. } = place.files;
    let path = |path: &Path| escaped(&path.to_string_lossy());
    let (uid, gid) = (place.uid, place.gid);
    format!(
        "<domain type='{kind}'>
  <name>{name}</name>
  <metadata><{PREFIX}:sandbox xmlns:{PREFIX}='{LABEL}' {owner}/></metadata>
  <genid/>
  <memory unit='b'>{memory}</memory>
  <memoryBacking><nosharepages/></memoryBacking>
  <vcpu>{cpus}</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initramfs}</initrd>
    <cmdline>{command_line}</cmdline>
  </os>
  <features><acpi/><vmport state='off'/></features>
  <cpu mode='{mode}'>{lacking}</cpu>
  <clock offset='utc'><timer name='hpet' present='no'/></clock>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>destroy</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>{emulator}</emulator>
    <controller type='usb' model='none'/>
    <controller type='virtio-serial' index='0' ports='2'>{slot3}</controller>
    <disk type='file' device='disk' snapshot='no'>
      <driver name='qemu' type='raw'/><source file='{image}'/><target dev='vda' bus='virtio'/><readonly/>{slot1}
    </disk>
    <disk type='file' device='disk' snapshot='internal'>
      <driver name='qemu' type='qcow2' cache='unsafe'/><source file='{state}'/><target dev='vdb' bus='virtio'/>{slot2}
    </disk>
    <channel type='unix'><source mode='connect' path='{socket}'/><target type='virtio' name='mayfly'/></channel>
    <rng model='virtio'><rate bytes='1024' period='1000'/><backend model='random'>/dev/urandom</backend>{slot4}</rng>
    <memballoon model='none'/>
    <audio id='1' type='none'/>
  </devices>
  <seclabel type='static' model='dac' relabel='no'><label>+{uid}:+{gid}</label></seclabel>
</domain>
",
        name = place.name,
        owner = place.owner.attributes(),
        memory = machine.memory,
        cpus = machine.cpus,
        kernel = path(kernel),
        initramfs = path(initramfs),
        command_line = escaped(&machine.kernel_command_line()),
        emulator = path(&machine.qemu.program),
        image = path(image),
        state = path(state),
        socket = path(socket),
        slot1 = slot(1),
        slot2 = slot(2),
        slot3 = slot(3),
        slot4 = slot(4),
    )
}

/// On the root bus: there is nothing to plug in later, and each port more is one more device to find at every boot.
fn slot(number: u8) -> String {
    format!("<address type='pci' bus='0x00' slot='{number:#04x}'/>")
}

fn escaped(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, letter| {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&apos;"),
            '"' => out.push_str("&quot;"),
            letter => out.push(letter),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{id::Id, vm::machine};

    #[test]
    fn a_path_can_say_nothing_but_a_path() {
        assert_eq!(escaped("/a'/><b x=\"&\">"), "/a&apos;/&gt;&lt;b x=&quot;&amp;&quot;&gt;");
    }

    #[test]
    fn a_machine_has_four_devices_and_nothing_that_leads_out() {
        let (machine, instance) = (machine::tests::emulated(), Id::random());
        let files = Files::below(Path::new("/data/machines/it's"));
        let (uid, gid) = (0x7000_0000, 0x7000_0000);
        let owner = Owner { node: Path::new("/data"), instance, boot: "b" };
        let place = Place { name: "m", owner, files: &files, uid, gid };
        let xml = domain(&machine, &place);
        for device in
            ["<interface", "<graphics", "<video", "<hostdev", "<filesystem", "<serial", "<console", "<tpm"]
        {
            assert!(!xml.contains(device), "{device} in {xml}");
        }
        assert_eq!(xml.matches("<disk ").count(), 2);
        assert_eq!(xml.matches(" type='raw'").count() + xml.matches(" type='qcow2'").count(), 2);
        assert!(xml.contains("model='none'/>\n    <controller type='virtio-serial'"));
        assert!(xml.contains("<label>+1879048192:+1879048192</label>") && xml.contains("<genid/>"));
        assert!(xml.contains(&format!("instance='{instance}'")) && xml.contains("it&apos;s/agent"));
    }
}
