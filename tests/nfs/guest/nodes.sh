# In the machine: an NFS server, and two nodes that mount it, each a namespace of its own with its own client, whose
# caches know nothing of the other's. What a node knows of a directory it believes for a minute (acdirmin), and the
# server keeps the locks of a dead client for LEASE seconds; its own default is 90.
set -eu
LEASE=20

modprobe -a veth bridge nfsd nfsv4
hostname server
mkdir -p /disk/export /nfs /var/lib/nfs/v4recovery /run/rpc_pipefs /run/nodes
mount -t nfsd nfsd /proc/fs/nfsd
echo $LEASE > /proc/fs/nfsd/nfsv4leasetime
echo $LEASE > /proc/fs/nfsd/nfsv4gracetime
echo '/disk/export *(rw,no_root_squash,no_subtree_check,fsid=0,insecure,sync)' > /etc/exports
printf '127.0.0.1 localhost\n10.0.0.254 server\n10.0.0.1 node1\n10.0.0.2 node2\n' > /etc/hosts
exportfs -ra
rpc.nfsd -N 3 4
rpc.mountd -N 2 -N 3

ip link add bridge type bridge
ip addr add 10.0.0.254/24 dev bridge
ip link set bridge up
for i in 1 2; do
  ip netns add node$i
  ip link add node$i type veth peer name eth0 netns node$i
  ip link set node$i master bridge up
  ip -n node$i addr add 10.0.0.$i/24 dev eth0
  ip -n node$i link set eth0 up
  ip -n node$i link set lo up
  ip netns exec node$i unshare --mount --uts --propagation private bash -ec "
    hostname node$i
    mount -t tmpfs shm /dev/shm
    mount -t nfs4 -o vers=4.2,acdirmin=60,acdirmax=60 10.0.0.254:/ /nfs
    echo \$\$ > /run/nodes/node$i
    exec sleep infinity" &
done
for i in 1 2; do
  until [ -s /run/nodes/node$i ]; do sleep 0.2; done
done
cat > /run/launch << 'LAUNCH'
#!/bin/bash
# As mpiexec would call ssh: a command on a node.
node=$1
shift
exec nsenter -t "$(cat /run/nodes/$node)" --mount --uts --net --root --wd -- /bin/bash -c "$*"
LAUNCH
chmod +x /run/launch
