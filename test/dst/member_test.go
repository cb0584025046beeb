package dst

var memberKinds = []kind{}
