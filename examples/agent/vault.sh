# In the vault: hands out whatever record is asked for. Who may ask is not its business: only the
# guard can.
exec 3<>/dev/virtio-ports/records
while read -r wanted <&3; do
	case $wanted in
	balance) echo '1250.00' >&3 ;;
	key) echo 'a83f-private-key' >&3 ;;
	*) echo 'no such record' >&3 ;;
	esac
done
