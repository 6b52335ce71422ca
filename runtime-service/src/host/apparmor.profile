# What AppArmor keeps from every container that names no profile of its own: the kernel's switches and memory, whatever the
# mounts of the container say. Loaded by berthd when it first needs it.
profile berth-default flags=(attach_disconnected,mediate_deleted) {
  network,
  capability,
  file,
  umount,
  unix,

  # The runtime, and whatever else on the host is not confined, may end a container's processes.
  signal (receive) peer=unconfined,
  # Debian 13 and Ubuntu 24.04 run these under profiles of their names.
  signal (receive) peer=runc,
  signal (receive) peer=crun,
  signal (send, receive) peer=berth-default,
  ptrace (trace, read, tracedby, readby) peer=berth-default,

  deny mount,
  deny remount,
  deny pivot_root,

  deny /proc/{kcore,sysrq-trigger,mem,kmem} rwklx,
  deny /proc/{acpi,asound,bus,fs,irq,scsi,tty}/** wklx,
  # Of the switches only those that a namespace has to itself are a container's: kernel/domainname, kernel/hostname,
  # kernel/msg*, kernel/sem*, kernel/shm*, fs/mqueue and net.
  deny /proc/sys/{abi,crypto,debug,dev,sunrpc,user,vm,xen}/** wklx,
  deny /proc/sys/fs/[^m]** wklx,
  deny /proc/sys/kernel/[^dhms]** wklx,
  deny /proc/sys/kernel/{d[^o],h[^o]}** wklx,
  deny /proc/sys/kernel/hotplug wklx,
  deny /proc/sys/kernel/m[^s]** wklx,
  deny /proc/sys/kernel/s[^eh]** wklx,
  deny /proc/sys/kernel/seccomp/** wklx,

  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/{firmware,devices/virtual/powercap,kernel/security}/** rwklx,
}
