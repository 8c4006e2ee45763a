package partition

import "strings"

// extended is the short name of an MBR partition that holds logical ones.
const extended = "extended"

// gptTypes maps PartitionTypeGUID to a short name. The names of Linux types are those of the Discoverable Partitions Specification
// and systemd-repart where it has one.
var gptTypes = map[string]string{
	"C12A7328-F81F-11D2-BA4B-00A0C93EC93B": "esp",
	"BC13C2FF-59E6-4262-A352-B275FD6F7172": "xbootldr",
	"21686148-6449-6E6F-744E-656564454649": "bios-boot",
	"9E1A2D38-C612-4316-AA26-8B49521E5A8B": "prep",
	"7412F7D5-A156-4B13-81DC-867174929325": "onie-boot",
	"D4E6E2CD-4469-46F3-B5CB-1BFF57AFC149": "onie-config",

	"0FC63DAF-8483-4772-8E79-3D69D8477DE4": "linux",
	"0657FD6D-A4AB-43C4-84E5-0933C84B4F4F": "swap",
	"E6D6D379-F507-44C2-A23C-238F2A3DF928": "lvm",
	"A19D880F-05FC-4D3B-A006-743F0F84911E": "raid",
	"933AC7E1-2EB4-4F13-B844-0E14E2AEF915": "home",
	"773F91EF-66D4-49B5-BD83-D683BF40AD16": "user-home",
	"3B8F8425-20E0-4F3B-907F-1A25A76F98E8": "srv",
	"4D21B016-B534-45C2-A9FB-5C16E091FD2D": "var",
	"7EC6F557-3BC5-4ACA-B293-16EF5DF639D1": "tmp",
	"8DA63339-0007-60C0-C436-083AC8230908": "linux-reserved",

	"EBD0A0A2-B9E5-4433-87C0-68B6B72699C7": "msdata",
	"E3C9E316-0B5C-4DB8-817D-F92DF00215AE": "msreserved",
	"DE94BBA4-06D1-4D40-A16A-BFD50179D6AC": "winre",
	"5808C8AA-7E8F-42E0-85D2-E1E90434CFB3": "ldm-metadata",
	"AF9B60A0-1431-4F62-BC68-3311714A69AD": "ldm-data",
	"E75CAF8F-F680-4CEE-AFA3-B001E56EFC2D": "storage-spaces",

	"7C3457EF-0000-11AA-AA11-00306543ECAC": "apfs",
	"48465300-0000-11AA-AA11-00306543ECAC": "hfs",
	"426F6F74-0000-11AA-AA11-00306543ECAC": "apple-boot",
	"53746F72-6167-11AA-AA11-00306543ECAC": "core-storage",
	"83BD6B9D-7F41-11DC-BE0B-001560B84F0F": "freebsd-boot",
	"516E7CB5-6ECF-11D6-8FF8-00022D09712B": "freebsd-swap",
	"516E7CB6-6ECF-11D6-8FF8-00022D09712B": "freebsd-ufs",
	"516E7CBA-6ECF-11D6-8FF8-00022D09712B": "freebsd-zfs",
	"516E7CB4-6ECF-11D6-8FF8-00022D09712B": "freebsd",
	"824CC7A0-36A8-11E3-890A-952519AD3F61": "openbsd",
	"49F48D5A-B10E-11DC-B99B-0019D1879648": "netbsd-ffs",
	"49F48D32-B10E-11DC-B99B-0019D1879648": "netbsd-swap",
	"6A898CC3-1DD2-11B2-99A6-080020736631": "zfs",
	"FE3A2A5D-4F32-41A7-B725-ACCC3285A309": "chromeos-kernel",
	"3CB8E202-3B7E-47DD-8A3C-7FF2A13CFCEC": "chromeos-root",
	"AA31E02A-400F-11DB-9590-000C2911D1B8": "vmfs",
	"9D275380-40AD-11DB-BF97-000C2911D1B8": "vmware-diagnostic",
	"4FBD7E29-9D25-41B8-AFD0-062C0CEFF05D": "ceph-osd",

	"44479540-F297-41B2-9AF7-D131D5F0458A": "linux-root-x86",
	"4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709": "linux-root-x86-64",
	"69DAD710-2CE4-4E3C-B16C-21A1D49ABED3": "linux-root-arm",
	"B921B045-1DF0-41C3-AF44-4C6F280D3FAE": "linux-root-arm64",
	"993D8D3D-F80E-4225-855A-9DAF8ED7EA97": "linux-root-ia64",
	"77055800-792C-4F94-B39A-98C91B762BB6": "linux-root-loongarch64",
	"37C58C8A-D913-4156-A25F-48B1B64E07F0": "linux-root-mips-le",
	"700BDA43-7A34-4507-B179-EEB93D7A7CA3": "linux-root-mips64-le",
	"1DE3F1EF-FA98-47B5-8DCD-4A860A654D78": "linux-root-ppc",
	"912ADE1D-A839-4913-8964-A10EEE08FBD2": "linux-root-ppc64",
	"C31C45E6-3F39-412E-80FB-4809C4980599": "linux-root-ppc64-le",
	"60D5A7FE-8E7D-435C-B714-3DD8162144E1": "linux-root-riscv32",
	"72EC70A6-CF74-40E6-BD49-4BDA08E8F224": "linux-root-riscv64",
	"08A7ACEA-624C-4A20-91E8-6E0FA67D23F9": "linux-root-s390",
	"5EEAD9A9-FE09-4A1E-A1D7-520D00531306": "linux-root-s390x",

	"75250D76-8CC6-458E-BD66-BD47CC81A812": "linux-usr-x86",
	"8484680C-9521-48C6-9C11-B0720656F69E": "linux-usr-x86-64",
	"7D0359A3-02B3-4F0A-865C-654403E70625": "linux-usr-arm",
	"B0E01050-EE5F-4390-949A-9101B17104E9": "linux-usr-arm64",
	"4301D2A6-4E3B-4B2A-BB94-9E0B2C4225EA": "linux-usr-ia64",
	"E611C702-575C-4CBE-9A46-434FA0BF7E3F": "linux-usr-loongarch64",
	"0F4868E9-9952-4706-979F-3ED3A473E947": "linux-usr-mips-le",
	"C97C1F32-BA06-40B4-9F22-236061B08AA8": "linux-usr-mips64-le",
	"7D14FEC5-CC71-415D-9D6C-06BF0B3C3EAF": "linux-usr-ppc",
	"2C9739E2-F068-46B3-9FD0-01C5A9AFBCCA": "linux-usr-ppc64",
	"15BB03AF-77E7-4D4A-B12B-C0D084F7491C": "linux-usr-ppc64-le",
	"B933FB22-5C3F-4F91-AF90-E2BB0FA50702": "linux-usr-riscv32",
	"BEAEC34B-8442-439B-A40B-984381ED097D": "linux-usr-riscv64",
	"CD0F869B-D0FB-4CA0-B141-9EA87CC78D66": "linux-usr-s390",
	"8A4F5770-50AA-4ED3-874A-99B710DB6FEA": "linux-usr-s390x",

	"D13C5D3B-B5D1-422A-B29F-9454FDC89D76": "linux-root-x86-verity",
	"2C7357ED-EBD2-46D9-AEC1-23D437EC2BF5": "linux-root-x86-64-verity",
	"7386CDF2-203C-47A9-A498-F2ECCE45A2D6": "linux-root-arm-verity",
	"DF3300CE-D69F-4C92-978C-9BFB0F38D820": "linux-root-arm64-verity",
	"B6ED5582-440B-4209-B8DA-5FF7C419EA3D": "linux-root-riscv64-verity",
	"8F461B0D-14EE-4E81-9AA9-049B6FB97ABD": "linux-usr-x86-verity",
	"77FF5F63-E7B6-4633-ACF4-1565B864C0E6": "linux-usr-x86-64-verity",
	"C215D751-7BCD-4649-BE90-6627490A4C05": "linux-usr-arm-verity",
	"6E11A4E7-FBCA-4DED-B9E9-E1A512BB664E": "linux-usr-arm64-verity",
	"8F1056BE-9B05-47C4-81D6-BE53128E5B54": "linux-usr-riscv64-verity",
	"5996FC05-109C-48DE-808B-23FA0830B676": "linux-root-x86-verity-sig",
	"41092B05-9FC8-4523-994F-2DEF0408B176": "linux-root-x86-64-verity-sig",
	"42B0455F-EB11-491D-98D3-56145BA9D037": "linux-root-arm-verity-sig",
	"6DB69DE6-29F4-4758-A7A5-962190F00CE3": "linux-root-arm64-verity-sig",
	"EFE0F087-EA8D-4469-821A-4C2A96A8386A": "linux-root-riscv64-verity-sig",
	"974A71C0-DE41-43C3-BE5D-5C5CCD1AD2C0": "linux-usr-x86-verity-sig",
	"E7BB33FB-06CF-4E81-8273-E543B413E2E2": "linux-usr-x86-64-verity-sig",
	"D7FF812F-37D1-4902-A810-D76BA57B975A": "linux-usr-arm-verity-sig",
	"C23CE4FF-44BD-4B00-B2D4-B41B3419E02A": "linux-usr-arm64-verity-sig",
	"D2F9000A-7A18-453F-B5CD-4D32F77A7B32": "linux-usr-riscv64-verity-sig",
}

// mbrTypes maps OSType to a short name; several types may share one.
var mbrTypes = map[byte]string{
	0x01: "fat12", 0x04: "fat16", 0x06: "fat16", 0x0E: "fat16", 0x0B: "fat32", 0x0C: "fat32",
	0x05: extended, 0x0F: extended, 0x85: extended,
	0x07: "ntfs", 0x27: "winre", 0x41: "prep",
	0x82: "swap", 0x83: "linux", 0x8E: "lvm", 0xFD: "raid",
	0xA5: "freebsd", 0xA6: "openbsd", 0xA9: "netbsd", 0xAF: "hfs",
	0xEA: "xbootldr", 0xEE: "gpt", 0xEF: "esp", 0xFB: "vmfs",
}

// typeGUID returns the GUID that a short name, or a GUID in any writing, stands for on a GPT.
func typeGUID(s string) (guid, error) {
	for id, name := range gptTypes {
		if strings.EqualFold(name, s) {
			return parseGUID(id)
		}
	}
	return parseGUID(s)
}
