//! The eBPF object of this architecture, as checked in and proved fresh by `cargo xtask build-ebpf --check`.

/// Aligns the bytes as an ELF file needs to be.
#[repr(C, align(64))]
struct Aligned<Bytes: ?Sized>(Bytes);

#[cfg(target_arch = "x86_64")]
static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!("../../../tracer-ebpf/prebuilt/tracer.x86_64.o"));
#[cfg(target_arch = "aarch64")]
static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!("../../../tracer-ebpf/prebuilt/tracer.aarch64.o"));

/// The object's bytes. A wrong architecture's object would load, count, and read garbage, so there is no default.
pub fn bytes() -> &'static [u8] {
    &OBJECT.0
}
